"""MSVD's captions are a pickle, which must not execute code, or JSON."""

import json
import os
import pickle

import pytest

from tests.helpers import published
from tests.helpers.published import assert_rejected, read_annotations


class ExecutesOnLoad:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": ExecutesOnLoad()}), "system, which is not loaded"),
        (pickle.dumps({"a": [["b"]]})[:-3], "not a pickle"),
        (b"not a pickle", "not a pickle"),
        (pickle.dumps([1]), r"is not \{id: \[caption\]\}"),
        (pickle.dumps({"a": 3}), r"is not \{id: \[caption\]\}"),
        (pickle.dumps({"a": [[3]]}), r"is not \{id: \[caption\]\}"),
    ],
    ids=["class", "truncated", "text", "list", "number", "words"],
)
def test_msvd_pickles_cannot_execute_code(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    published.msvd(tmp_path, {"train": (1, 2), "val": (1, 1), "test": (1, 1)})
    (tmp_path / "raw-captions.pkl").write_bytes(content)
    assert_rejected("msvd", tmp_path, message)
    assert not (tmp_path / "executed").exists()


def test_msvd_captions_in_each_format(tmp_path):
    published.msvd(tmp_path, {"train": (2, 3), "val": (1, 1), "test": (1, 1)})
    before = read_annotations("msvd", tmp_path)
    assert before.clips[0].captions == ("a man 0", "a man 1")
    python_2 = b"(dp0\nS'-4train_0_9'\np1\n(lp2\n(lp3\nS'caf\\xc3\\xa9'\naas."
    (tmp_path / "raw-captions.pkl").write_bytes(python_2)
    assert read_annotations("msvd", tmp_path).clips[0].captions == ("café",)
    (tmp_path / "raw-captions.pkl").unlink()
    captions = {clip.clip_id: list(clip.captions) for clip in before.clips}
    captions["-4val_0_9"] = "a man 0"
    (tmp_path / "captions_msvd_small.json").write_text(json.dumps(captions))
    assert read_annotations("msvd", tmp_path) == before
    (tmp_path / "captions.json").write_text("{}")
    assert_rejected("msvd", tmp_path, "both captions.json and captions_msvd_small.json")

"""MSVD's captions come as a pickle, of which nothing is executed, or as JSON."""

import json
import os
import pickle

import pytest

from tests.helpers import published
from tests.helpers.published import found, refused


class Trap:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps({"a": Trap()}), "system, which is not executed"),
        (pickle.dumps({"a": [["b"]]})[:-3], "no pickle"),
        (b"not a pickle", "no pickle"),
        (pickle.dumps([1]), r"is not \{id: \[caption\]\}"),
        (pickle.dumps({"a": 3}), r"is not \{id: \[caption\]\}"),
        (pickle.dumps({"a": [[3]]}), r"is not \{id: \[caption\]\}"),
    ],
    ids=["class", "cut", "text", "list", "number", "words"],
)
def test_msvd_pickles_execute_nothing(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    published.msvd(tmp_path, {"train": (1, 2), "val": (1, 1), "test": (1, 1)})
    (tmp_path / "raw-captions.pkl").write_bytes(content)
    refused("msvd", tmp_path, says)
    assert not (tmp_path / "executed").exists()


def test_msvd_captions_in_each_form(tmp_path):
    published.msvd(tmp_path, {"train": (2, 3), "val": (1, 1), "test": (1, 1)})
    before = found("msvd", tmp_path)
    assert before.clips[0].captions == ("a man 0", "a man 1")
    python_2 = b"(dp0\nS'-4train_0_9'\np1\n(lp2\n(lp3\nS'caf\\xc3\\xa9'\naas."
    (tmp_path / "raw-captions.pkl").write_bytes(python_2)
    assert found("msvd", tmp_path).clips[0].captions == ("café",)
    (tmp_path / "raw-captions.pkl").unlink()
    captions = {clip.clip_id: list(clip.captions) for clip in before.clips}
    captions["-4val_0_9"] = "a man 0"
    (tmp_path / "captions_msvd_small.json").write_text(json.dumps(captions))
    assert found("msvd", tmp_path) == before
    (tmp_path / "captions.json").write_text("{}")
    refused("msvd", tmp_path, "captions.json or captions_msvd_small.json")

"""Retriever: its scores are those of `eval`, however its inputs are batched."""

import csv
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import DataError, UsageError
from data.records import Segment
from data.storage.path import Path
from hvp_jax import Retriever
from hvp_jax.cli.verbs import evaluate
from hvp_jax.config.overrides import load_json
from hvp_jax.models.similarity import sentence_scores, sentence_vector, weigh_taps
from hvp_jax.retrieval.batching import concatenated
from tests.helpers.checkpoints import random_state, write
from tests.helpers.command import ROOT
from tests.helpers.random_runs import SIZES

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def retriever(run):
    return Retriever.load(run, batch_size=8)


@pytest.fixture(scope="module")
def captions(folder) -> list[str]:
    with open(folder / "captions.csv") as file:
        return [row["caption"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def features(retriever, videos):
    return retriever.encode_videos(videos)


def equal(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_scores_are_those_of_eval(run, retriever, captions, videos, features):
    evaluate.run(load_json(Path(run / "config.json")), Path(run))
    rows = [line.split() for line in (run / "run.trec").read_text().splitlines()]
    expected = np.full((6, 6), np.nan)
    for query, _, clip, _, score, _ in rows:
        names = [video.stem for video in videos]
        expected[names.index(query.partition("#")[0]), names.index(clip)] = float(score)
    scores = retriever.score(captions, features)
    assert scores.shape == (6, 6) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        retriever.score(captions[3:4], videos[2:4]), expected[3:4, 2:4], rtol=0, atol=1e-5
    )


def test_features_do_not_depend_on_the_batch(retriever, captions, videos, features):
    frames = [retriever.read_frames(video) for video in videos]
    assert {len(x) for x in frames} == {4} and frames[0].shape == (4, 32, 32, 3)
    one_by_one = concatenated([retriever.encode_frames([x]) for x in frames])
    assert equal(one_by_one, features)
    text = retriever.encode_texts(captions)
    assert text.words.shape == (6, 24, 32) and text.sentence.shape == (6, 32)
    np.testing.assert_allclose(
        retriever.encode_texts(captions[4:5]).words, text.words[4:5], atol=1e-6
    )


def test_clips_of_any_length_keep_their_places(retriever, videos, features):
    """Those that are as short as the run's are padded to fewer frames than the others."""
    short = Segment(str(videos[1]), 0, 1)
    assert len(retriever.read_frames(short)) == 2
    assert len(retriever.read_frames((str(videos[1]), None, 1))) == 2
    mixed = retriever.encode_videos([videos[0], short, str(videos[2])])
    assert equal(jax.tree.map(lambda x: x[::2], mixed), jax.tree.map(lambda x: x[[0, 2]], features))
    alone = retriever.encode_videos([short])
    assert equal(jax.tree.map(lambda x: x[1:2], mixed), alone)
    assert alone.patches.shape == (1, 2, 5, 32) and (alone.patch_weights[0, :, 3:] == 0).all()
    explained = retriever.explain("a dog", short).score
    assert retriever.score(["a dog"], mixed)[0, 1] == pytest.approx(explained, abs=1e-5)
    assert not np.allclose(mixed.patch_sum[1], features.patch_sum[1], atol=1e-3)


def test_the_vector_of_a_clip_has_all_terms_of_the_sentence(retriever, captions, features):
    text = retriever.encode_texts(captions)
    vector = sentence_vector(features)
    assert isinstance(vector, np.ndarray) and vector.shape == (6, 32)
    without = jax.tree.map(lambda x: x, features).replace(
        patches=None, patch_weights=None, tap_weights=features.tap_weights[:, 1:]
    )
    expected = weigh_taps(sentence_scores(text, without), jnp.asarray(without.tap_weights)).sum(
        (0, 1)
    )
    np.testing.assert_allclose(text.sentence @ vector.T, expected, atol=1e-5)
    np.testing.assert_allclose(sentence_vector(without), vector, atol=1e-6)
    assert (
        sentence_vector(without.replace(patch_sum=None, frame_sum=None, clip_feature=None)) is None
    )


def test_the_fingerprint_is_that_of_weights_and_settings(run, retriever, tmp_path):
    assert len(retriever.fingerprint) == 64
    copy = shutil.copytree(run, tmp_path / "copy")
    assert Retriever.load(copy, batch_size=1).fingerprint == retriever.fingerprint
    config = json.loads((copy / "config.json").read_text())
    config["data"]["max_words"] = 16
    (copy / "config.json").write_text(json.dumps(config))
    assert Retriever.load(copy).fingerprint != retriever.fingerprint
    assert retriever.weights == str(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text '' is empty"),
        (" \t", "is empty"),
        ("dog " * 500, "has 500 tokens and the model reads at most 22"),
        ("caf\udce9", r"the text 'caf\\udce9' is not UTF-8"),
    ],
)
def test_queries_that_cannot_be_answered(retriever, text, message):
    with pytest.raises(UsageError, match=message):
        retriever.check_query(text)
    if "tokens" not in message:
        with pytest.raises(UsageError, match=message):
            retriever.encode_texts(["a dog", text])


def test_what_cannot_be_encoded(retriever, folder):
    with pytest.raises(UsageError, match="there are no videos"):
        retriever.encode_videos([])
    with pytest.raises(TypeError, match="texts must be a sequence, not 'a dog' alone"):
        retriever.encode_texts("a dog")
    for path in (folder / "absent.mp4", folder / "captions.csv"):
        with pytest.raises(DataError, match=path.name):
            retriever.encode_videos([path])


def test_weights_whose_scores_need_more_than_the_pair(tmp_path, run):
    workdir = shutil.copytree(run, tmp_path / "run")
    config = (workdir / "config.json").read_text()
    for key, value in (("word_weights", "paired"), ("noise", "always")):
        changed = json.loads(config)
        changed["similarity" if key == "word_weights" else "distillation"][key] = value
        (workdir / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=f"{key}={value}: its scores"):
            Retriever.load(workdir)
    with pytest.raises(UsageError, match="there is no checkpoint"):
        Retriever.load(tmp_path)
    with pytest.raises(UsageError, match="batch_size is 0"):
        Retriever.load(run, batch_size=0)


def test_weights_without_a_config(tmp_path, run, retriever, videos, caplog):
    caplog.set_level("INFO")
    clip = Retriever.load(write(tmp_path, "huggingface", random_state(SIZES), SIZES))
    assert (
        "the weights are CLIP's alone; a video is scored by the mean of its frames" in caplog.text
    )
    assert clip.config.similarity.terms == ("sentence_clip",) and clip.model.taps == (2,)
    scores = clip.score(["a red square", "a dog"], videos[:1])
    assert scores.shape == (2, 1) and np.abs(scores).max() <= 1
    (config := shutil.copytree(run, tmp_path / "ported") / "config.json").unlink()
    ported = Retriever.load(config.parent)
    assert ported.config.similarity.tap_weights == "learned" and ported.max_frames == 12
    assert ported.model.terms == retriever.model.terms and ported.model.taps == (1, 2)


def test_the_package_imports_no_jax():
    code = "import sys, hvp_jax; assert 'jax' not in sys.modules and not hasattr(hvp_jax, 'Absent')"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

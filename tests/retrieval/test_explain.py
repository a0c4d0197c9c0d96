"""The parts of a score add up to it, and distilled patches are followed to those of frames."""

import dataclasses
import functools
import json
import random

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data.batches.batch import VideoBatch
from data.errors import UsageError
from data.records import Segment
from hvp_jax import Retriever
from hvp_jax.cli import main
from hvp_jax.models.hvpnet import from_config
from hvp_jax.models.similarity import TextFeatures, l2_normalize, scores
from hvp_jax.retrieval import explain, figure
from hvp_jax.retrieval.observe import observer
from hvp_jax.retrieval.trace import GONE, trace
from tests.helpers import small
from tests.helpers.random_runs import EVERYTHING, SIZES, config_of

pytestmark = pytest.mark.usefixtures("quick_compile")

TEXT = "a small red square rises to the top, frisbeeing"
SETTINGS = {
    "paper": {},
    "unnormalised": {"similarity.normalize": "none", "similarity.mask_padding": False},
    "uniform": {"similarity.token_weights": "uniform", "distillation.method": "kmeans"},
    "top_score": {"distillation.method": "top_score", "similarity.terms": ("word_patch",)},
    "average_pool": {"distillation.method": "average_pool", **EVERYTHING},
    "no stages": {"distillation.stages": 0, "similarity.terms": ("sentence_patch",)},
    "frames": {
        "similarity.terms": ("sentence_frame", "sentence_clip"),
        "frames.aggregation": "transformer",
    },
}


@pytest.fixture(scope="module")
def retriever(run):
    return Retriever.load(run, batch_size=8)


@pytest.fixture(scope="module")
def explanation(retriever, videos):
    return retriever.explain(TEXT, videos[0])


def added(parts, term: str, tap: int) -> float:
    return sum(part.contributions[term] for part in parts if part.tap == tap)


def require_sums(explanation, score: float) -> None:
    """The score is the sum of its parts, and each part that of words, patches and frames."""
    assert explanation.score == pytest.approx(score, abs=1e-5)
    assert sum(map(sum, explanation.parts.values())) == pytest.approx(score, abs=1e-5)
    for term, part in explanation.parts.items():
        for i, (tap, value) in enumerate(zip(explanation.taps, part, strict=True)):
            of_frames = term in ("sentence_frame", "sentence_clip")
            total = added(explanation.frames if of_frames else explanation.patches, term, tap)
            if term == "word_patch":
                total += sum(word.answers[i].contribution for word in explanation.words)
            assert total == pytest.approx(value, abs=1e-5)


def test_the_parts_of_50_pairs_add_up_to_their_scores(retriever, videos, monkeypatch):
    monkeypatch.setattr(retriever, "read_frames", functools.cache(retriever.read_frames))
    colours, things = ("red", "blue", "green", "white", "pink"), ("square", "star", "dog", "café")
    texts = [f"a {colour} {thing}" for colour in colours for thing in things]
    expected = retriever.score(texts, videos)
    rng = random.Random(0)
    for _ in range(50):
        i, j = rng.randrange(len(texts)), rng.randrange(len(videos))
        require_sums(retriever.explain(texts[i], videos[j]), expected[i, j])
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("name", SETTINGS)
def test_the_parts_add_up_whatever_the_model(name):
    config = config_of(**SETTINGS[name])
    model = from_config(config, SIZES)
    params = small.random_params(model, *small.captions(0, 1, 4), *small.clips(0, 1, 3))
    frames, padded = 2, 3
    video, _ = small.clips(1, 1, frames)
    video = np.pad(video, [(0, 0), (0, padded - frames), (0, 0), (0, 0), (0, 0)])
    observed = observer(model)(params, VideoBatch(video, np.arange(padded)[None] < frames))
    words, count = l2_normalize(np.float32(small.normal(2, 1, 6, SIZES.embed_dim))), 4
    if not config.similarity.mask_padding:
        frames, count = padded, 6
    weights = np.float32(np.arange(1, 7) * (np.arange(6) < count))[None]
    text = TextFeatures(words, jnp.asarray(weights), words[:, 0])
    pair = explain.Pair(model, text, ["word"] * count, observed, frames)
    got = explain.explain(pair, query=TEXT, video=Segment("x"), images=video[0, :2])
    # Words that do not count repeat the first one, as the model has them.
    text = text.replace(words=jnp.where(weights[:, :, None] > 0, words, words[:, :1]))
    require_sums(got, float(scores(text, observed.features).sum()))
    assert set(got.parts) == set(config.similarity.terms)
    assert len(got.concepts) == config.distillation.stages * model.terms[0].count("patch")
    json.dumps(got.to_json())


def test_stages_are_followed_to_the_first_tokens():
    clusters = [
        np.array([[1, 0, 1, 2, 0, 9], [0, 0, 1, 1, 2, 9]]),
        np.array([[0, 1, 1], [1, 0, 1]]),
    ]
    maps = trace("dpc_knn", [{"clusters": x} for x in clusters], 5, 2)
    assert maps[0].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert maps[1].tolist() == [[1, 0, 1, 2, 0], [0, 0, 1, 1, 2]]
    assert maps[2].tolist() == [[1, 0, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert trace("average_pool", [{}, {}], 5, 1)[2].tolist() == [[0, 0, 0, 0, 1]]
    kept = [{"scores": np.array([[3.0, 1, 3, 5, 2, 99]])}, {"scores": np.array([[1.0, 7, 7]])}]
    first, second = trace("top_score", kept, 5, 1)[1:]
    assert first.tolist() == [[0, GONE, 1, 2, GONE]]
    assert second.tolist() == [[GONE, GONE, 0, 1, GONE]]


def test_every_patch_of_the_frames_is_in_one_concept_of_each_tap(explanation):
    assert [x.shape for x in explanation.concepts] == [(2, 4, 5)] * 2
    for i, tap in enumerate(explanation.taps):
        patches = [patch for patch in explanation.patches if patch.tap == tap]
        assert len(patches) == 5  # of 20, after two stages
        assert sum(patch.weight for patch in patches) == pytest.approx(1)
        for patch in patches:
            places = np.argwhere(explanation.concepts[-1][i] == patch.number)
            members = [
                (m.frame, 0 if m.row is None else 1 + 2 * m.row + m.column) for m in patch.members
            ]
            assert members == [tuple(place) for place in places.tolist()] != []


def test_words_are_named_and_weighed(explanation):
    names = [word.word for word in explanation.words]
    assert names[:5] == ["[start]", "a", "small", "red", "square"]
    assert names[-4:] == ["fris-", "bee-", "ing", "[end]"]
    assert sum(word.weight for word in explanation.words) == pytest.approx(1)
    for word in explanation.words:
        for answer in word.answers:
            assert 0 <= answer.patch < 5 and abs(answer.cosine) <= 1 + 1e-6


def test_explain_as_a_command(run_cli, run, videos, tmp_path):
    stretch = ("--start=1", "--end=3", f"--output={tmp_path / 'out'}", "--json")
    flags = (f"--weights={run}", f"--video={videos[0]}")
    status, out, err = run_cli("explain", *flags, TEXT, *stretch)
    assert status == 0, err
    result = json.loads(out)
    assert result == json.loads((tmp_path / "out/explanation.json").read_text())
    assert result["video"] == {"path": str(videos[0]), "start": 1.0, "end": 3.0}
    assert sum(map(sum, result["parts"].values())) == pytest.approx(result["score"], abs=1e-5)
    assert result["query"] == TEXT and "images" not in result
    assert result["patches"][0]["members"][0].keys() == {"frame", "row", "column"}
    assert Image.open(tmp_path / "out/explanation.png").width > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TEXT, "more"], "unrecognized arguments: more; see python run.py explain --help"),
        ([], "arguments are required: TEXT"),
        ([TEXT, "--start=now"], "'now' is not a number of seconds from 0 on"),
        ([TEXT, "--start=2", "--end=1"], "--end=1 is not after --start=2"),
        ([" "], "describe what a video shows"),
        ([TEXT, "--start=99"], "clip0000.mp4"),
    ],
)
def test_wrong_arguments_are_one_line(run, videos, capfd, arguments, message):
    flags = [f"--weights={run}", f"--video={videos[0]}"]
    assert main.main(["explain", *flags, *arguments]) in (1, 2)
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_the_figure_of_any_explanation(explanation, tmp_path):
    explanation.draw(tmp_path / "figure.png")
    whole = Image.open(tmp_path / "figure.png")
    frames = dataclasses.replace(
        explanation, words=(), patches=(), concepts=(), text="日本 $x$ " * 40
    )
    frames.draw(tmp_path / "frames.png")
    assert Image.open(tmp_path / "frames.png").height < whole.height
    with pytest.raises(UsageError, match="cannot write"):
        explanation.draw(tmp_path / "absent" / "figure.png")


def test_a_word_is_shown_where_it_was_found(explanation):
    word = explanation.words[3]
    heat = figure._heat(explanation, word)
    near = [(answer.tap, answer.patch) for answer in word.answers if answer.cosine > 0]
    members = {
        (m.frame, 0 if m.row is None else 1 + 2 * m.row + m.column)
        for patch in explanation.patches
        if (patch.tap, patch.number) in near
        for m in patch.members
    }
    assert near and set(map(tuple, np.argwhere(heat > 0).tolist())) == members
    assert heat.max() == pytest.approx(1)

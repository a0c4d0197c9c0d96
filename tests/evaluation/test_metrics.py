import json

import numpy as np
import pytest

from data.errors import DataError
from hvp_jax.evaluation import metrics
from tests.helpers.command import GOLDEN

CASES = json.loads((GOLDEN / "metrics.json").read_text())
NAMES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "R50": "R@50", "MedianR": "MdR", "MeanR": "MnR"}
BOTH = (metrics.text_to_video, metrics.video_to_text)


def many_captions(seed: int, videos: int = 30, ties: bool = False):
    """A similarity whose rows come in no order, and each row's video."""
    rng = np.random.default_rng(seed)
    video_of_text = np.concatenate([np.arange(videos), rng.integers(0, videos, 2 * videos)])
    rng.shuffle(video_of_text)
    similarity = rng.standard_normal((len(video_of_text), videos))
    return (similarity.round(0) if ties else similarity), video_of_text


@pytest.mark.parametrize("case", CASES, ids=[str(np.shape(c["similarity"])) for c in CASES])
def test_figures_equal_the_reference(case):
    similarity = np.array(case["similarity"])
    video_of_text = np.repeat(
        np.arange(similarity.shape[1]), case.get("captions_per_video", [1] * len(similarity))
    )
    for figures, golden in zip(BOTH, ("t2v", "v2t"), strict=True):
        found = figures(similarity, video_of_text)
        expected = {NAMES[name]: value for name, value in case[golden].items()}
        assert found == pytest.approx(expected, rel=1e-5) and list(found) == list(NAMES.values())


def test_ties_share_the_mean_of_their_places():
    similarity = np.array([[3, 3, 5, 3, 1]])
    assert metrics.ranks(similarity, [0]) == 3  # places 2, 3 and 4
    assert metrics.ranks(similarity, [2]) == 1
    assert metrics.ranks(similarity, [4]) == 5
    assert metrics.ranks(np.array([[2, 2]]), [1]) == 1.5


def test_scores_all_alike_are_at_chance():
    similarity = np.zeros((40, 7))
    found = metrics.ranks(similarity, np.arange(40) % 7)
    assert found.shape == (40,) and (found == (7 + 1) / 2).all()
    for figures in BOTH:
        assert figures(similarity, np.arange(40) % 7) == {
            **{"R@1": 0.0, "R@5": 100.0, "R@10": 100.0, "R@50": 100.0, "MdR": 4.0, "MnR": 4.0}
        }


def test_a_dead_video_gives_one_rank_per_query():
    similarity = np.eye(1000, dtype=np.float32)
    similarity[:, :200] = 0  # 200 videos that match nothing: their rows are constant
    found = metrics.ranks(similarity, np.arange(1000))
    assert found.shape == (1000,)
    assert (found[:200] == 500.5).all() and (found[200:] == 1).all()


@pytest.mark.parametrize("figures", BOTH)
@pytest.mark.parametrize("ties", [False, True])
def test_order_of_gallery_and_of_queries_changes_nothing(figures, ties):
    similarity, video_of_text = many_captions(0, ties=ties)
    expected = figures(similarity, video_of_text)
    rng = np.random.default_rng(1)
    columns, rows = rng.permutation(30), rng.permutation(len(similarity))
    place = np.argsort(columns)  # of each video among the permuted columns
    assert figures(similarity[rows][:, columns], place[video_of_text[rows]]) == expected


@pytest.mark.parametrize("figures", BOTH)
def test_chunk_changes_nothing(figures):
    similarity, video_of_text = many_captions(2, ties=True)
    expected = figures(similarity, video_of_text)
    for chunk in (1, 7, 89, 90, 1000):
        assert figures(similarity, video_of_text, chunk) == expected


def test_video_to_text_counts_videos_not_captions():
    # Both captions of video 1 match video 0 better than its own: one better entry, not two.
    similarity = np.array([[1.0, 0], [2, 0], [2, 3]])
    assert metrics.video_to_text(similarity, [0, 1, 1])["MnR"] == (2 + 1) / 2
    # The best caption of a video speaks for it, whichever it is.
    assert metrics.video_to_text(similarity, [1, 0, 1])["MnR"] == (1.5 + 1) / 2


@pytest.mark.parametrize("transposed", [False, True])
def test_one_caption_a_video_is_the_transpose(transposed):
    similarity = np.random.default_rng(3).standard_normal((20, 20))
    figures, other = BOTH[::-1] if transposed else BOTH
    assert figures(similarity, np.arange(20)) == other(similarity.T, np.arange(20))


@pytest.mark.parametrize("figures", BOTH)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_an_error(figures, bad):
    similarity, video_of_text = many_captions(4)
    similarity[[70, 31], [5, 0]] = bad
    with pytest.raises(DataError, match="^2 of 90 rows .* NaN or infinity, the first is row 31"):
        figures(similarity, video_of_text, chunk=16)


def test_a_video_without_a_caption_is_an_error_for_video_to_text():
    similarity = np.zeros((3, 4))
    with pytest.raises(DataError, match="^2 of 4 videos have no caption, the first is number 1"):
        metrics.video_to_text(similarity, [0, 2, 2])
    assert metrics.text_to_video(similarity, [0, 2, 2])["MnR"] == 2.5


@pytest.mark.parametrize(
    ("similarity", "target", "says"),
    [
        (np.zeros(3), [0, 0, 0], "shape"),
        (np.zeros((0, 3)), [], "shape"),
        (np.zeros((2, 3)), [0], "2 integers"),
        (np.zeros((2, 3)), [0.0, 1.0], "2 integers"),
        (np.zeros((2, 3)), [0, 3], "0 to 2"),
        (np.zeros((2, 3)), [-1, 0], "0 to 2"),
    ],
)
def test_arguments_that_do_not_fit(similarity, target, says):
    for figures in BOTH:
        with pytest.raises(DataError, match=says):
            figures(similarity, target)


@pytest.mark.parametrize("figures", BOTH)
def test_chance_is_what_random_scores_reach(figures):
    found = [figures(*many_captions(seed)) for seed in range(200)]
    for name, expected in metrics.chance(30).items():
        assert np.mean([f[name] for f in found]) == pytest.approx(expected, rel=0.05), name

import json
import re

import numpy as np
import pytest

from data.errors import DataError
from hvp_jax.evaluation import metrics
from tests.helpers.command import GOLDEN

CASES = json.loads((GOLDEN / "metrics.json").read_text())
NAMES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "R50": "R@50", "MedianR": "MdR", "MeanR": "MnR"}
DIRECTIONS = (metrics.text_to_video, metrics.video_to_text)


def random_similarity(seed: int, videos: int = 30, ties: bool = False):
    """Similarities of three captions a video on average, in random order, and their videos."""
    rng = np.random.default_rng(seed)
    video_of_text = np.concatenate([np.arange(videos), rng.integers(0, videos, 2 * videos)])
    rng.shuffle(video_of_text)
    similarity = rng.standard_normal((len(video_of_text), videos))
    return (similarity.round(0) if ties else similarity), video_of_text


@pytest.mark.parametrize("case", CASES, ids=[str(np.shape(c["similarity"])) for c in CASES])
def test_metrics_equal_the_reference(case):
    similarity = np.array(case["similarity"])
    video_of_text = np.repeat(
        np.arange(similarity.shape[1]), case.get("captions_per_video", [1] * len(similarity))
    )
    for compute, golden in zip(DIRECTIONS, ("t2v", "v2t"), strict=True):
        result = compute(similarity, video_of_text)
        expected = {NAMES[name]: value for name, value in case[golden].items()}
        assert result == pytest.approx(expected, rel=1e-5) and list(result) == list(NAMES.values())


def test_ties_share_their_mean_rank():
    similarity = np.array([[3, 3, 5, 3, 1]])
    assert metrics.ranks(similarity, [0]) == 3  # ranks 2, 3 and 4
    assert metrics.ranks(similarity, [2]) == 1
    assert metrics.ranks(similarity, [4]) == 5
    assert metrics.ranks(np.array([[2, 2]]), [1]) == 1.5


def test_equal_scores_are_at_chance():
    similarity = np.zeros((40, 7))
    ranks = metrics.ranks(similarity, np.arange(40) % 7)
    assert ranks.shape == (40,) and (ranks == (7 + 1) / 2).all()
    for compute in DIRECTIONS:
        assert compute(similarity, np.arange(40) % 7) == {
            **{"R@1": 0.0, "R@5": 100.0, "R@10": 100.0, "R@50": 100.0, "MdR": 4.0, "MnR": 4.0}
        }


def test_a_video_of_constant_scores_gives_one_rank_per_query():
    similarity = np.eye(1000, dtype=np.float32)
    similarity[:, :200] = 0  # 200 videos that match nothing: their rows are constant
    ranks = metrics.ranks(similarity, np.arange(1000))
    assert ranks.shape == (1000,)
    assert (ranks[:200] == 500.5).all() and (ranks[200:] == 1).all()


@pytest.mark.parametrize("compute", DIRECTIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_gallery_and_queries_does_not_matter(compute, ties):
    similarity, video_of_text = random_similarity(0, ties=ties)
    expected = compute(similarity, video_of_text)
    rng = np.random.default_rng(1)
    columns, rows = rng.permutation(30), rng.permutation(len(similarity))
    position = np.argsort(columns)  # of each video among the permuted columns
    assert compute(similarity[rows][:, columns], position[video_of_text[rows]]) == expected


@pytest.mark.parametrize("compute", DIRECTIONS)
def test_the_chunk_size_does_not_matter(compute):
    similarity, video_of_text = random_similarity(2, ties=True)
    expected = compute(similarity, video_of_text)
    for chunk in (1, 7, 89, 90, 1000):
        assert compute(similarity, video_of_text, chunk) == expected


def test_video_to_text_counts_videos_not_captions():
    # Both captions of video 1 match video 0 better than its own: one better entry, not two.
    similarity = np.array([[1.0, 0], [2, 0], [2, 3]])
    assert metrics.video_to_text(similarity, [0, 1, 1])["MnR"] == (2 + 1) / 2
    # Only the best caption of a video counts.
    assert metrics.video_to_text(similarity, [1, 0, 1])["MnR"] == (1.5 + 1) / 2


@pytest.mark.parametrize("transposed", [False, True])
def test_with_one_caption_a_video_the_directions_are_transposes(transposed):
    similarity = np.random.default_rng(3).standard_normal((20, 20))
    compute, other = DIRECTIONS[::-1] if transposed else DIRECTIONS
    assert compute(similarity, np.arange(20)) == other(similarity.T, np.arange(20))


@pytest.mark.parametrize("compute", DIRECTIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_score_is_an_error(compute, bad):
    similarity, video_of_text = random_similarity(4)
    similarity[[70, 31], [5, 0]] = bad
    with pytest.raises(DataError, match="^2 of 90 rows .* NaN or infinity, the first is row 31"):
        compute(similarity, video_of_text, chunk=16)


def test_a_video_without_a_caption_is_an_error_for_video_to_text():
    similarity = np.zeros((3, 4))
    with pytest.raises(DataError, match="^2 of 4 videos have no caption, the first is number 1"):
        metrics.video_to_text(similarity, [0, 2, 2])
    assert metrics.text_to_video(similarity, [0, 2, 2])["MnR"] == 2.5


@pytest.mark.parametrize(
    ("similarity", "target", "message"),
    [
        (np.zeros(3), [0, 0, 0], "shape"),
        (np.zeros((0, 3)), [], "shape"),
        (np.zeros((2, 3)), [0], "2 integers"),
        (np.zeros((2, 3)), [0.0, 1.0], "2 integers"),
        (np.zeros((2, 3)), [0, 3], "0 to 2"),
        (np.zeros((2, 3)), [-1, 0], "0 to 2"),
    ],
)
def test_arguments_of_wrong_shape_or_type_are_errors(similarity, target, message):
    for compute in DIRECTIONS:
        with pytest.raises(DataError, match=message):
            compute(similarity, target)


@pytest.mark.parametrize("compute", DIRECTIONS)
def test_chance_is_the_mean_of_random_scores(compute):
    results = [compute(*random_similarity(seed)) for seed in range(200)]
    for name, expected in metrics.chance(30).items():
        assert np.mean([result[name] for result in results]) == pytest.approx(expected, rel=0.05), (
            name
        )


@pytest.mark.parametrize(
    ("videos", "names"),
    [
        (1, "1 video: R@1, R@5, R@10 and R@50 are"),
        (5, "5 videos: R@5, R@10 and R@50 are"),
        (10, "10 videos: R@10 and R@50 are"),
        (11, "11 videos: R@50 is"),
        (51, None),
    ],
)
def test_a_warning_names_the_recalls_that_do_not_depend_on_the_scores(videos, names):
    warning = metrics.small_gallery_warning("test", videos)
    assert warning.startswith(f"split test has only {names} 100") if names else warning == ""
    worst = metrics.text_to_video(-np.eye(videos), range(videos))
    constant = [name for name, value in worst.items() if name[:2] == "R@" and value == 100]
    assert constant == re.findall(r"R@\d+", warning)

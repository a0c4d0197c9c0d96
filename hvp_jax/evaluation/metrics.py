"""Retrieval metrics from a similarity matrix: R@k, median and mean rank, in both directions.

Rows of a matrix are texts, columns are videos, and a greater score is a better match.
Every query has exactly one rank. Ties share their mean rank, so that a model with equal
scores for everything is at chance, whatever the order of the gallery.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from data.errors import DataError

RECALLS = (1, 5, 10, 50)
CHUNK = 1024  # rows compared at once: bounds the memory needed besides the matrix


def ranks(
    similarity: np.ndarray, target: ArrayLike, chunk: int = CHUNK
) -> Float[np.ndarray, " queries"]:
    """The rank of each query's correct answer, counted from 1.

    `similarity` [queries, gallery]; `target` [queries] is the column of each correct answer.
    The rank is 1 + the number of better columns + half the number of other columns with
    the same score. Raises DataError if a score is NaN or infinite.
    """
    similarity = _matrix(similarity)
    target = _indices(target, similarity.shape[0], similarity.shape[1])
    _require_finite(similarity, chunk)
    result = np.empty(len(similarity))
    for first in range(0, len(similarity), chunk):
        rows = similarity[first : first + chunk]  # [C, N]
        correct = np.take_along_axis(rows, target[first : first + chunk, None], axis=1)  # [C, 1]
        better = np.count_nonzero(rows > correct, axis=1)
        equal = np.count_nonzero(rows == correct, axis=1)  # includes the correct column
        result[first : first + chunk] = 1 + better + (equal - 1) / 2
    return result


def text_to_video(
    similarity: np.ndarray, video_of_text: ArrayLike, chunk: int = CHUNK
) -> dict[str, float]:
    """Metrics with captions as queries and videos as the gallery.

    `similarity` [texts, videos]; `video_of_text` [texts] is the column of each caption's
    own video. Every caption of a video is a separate query. Raises DataError as `ranks` does.
    """
    return summary(ranks(similarity, video_of_text, chunk))


def video_to_text(
    similarity: np.ndarray, video_of_text: ArrayLike, chunk: int = CHUNK
) -> dict[str, float]:
    """Metrics with videos as queries. Arguments as in `text_to_video`.

    A gallery entry is the set of captions of one video and scores as high as its best
    caption: the rank of video j is 1 + the number of other videos with a caption that
    matches j better than j's own best one. The greatest rank is therefore the number of
    videos, not of captions, as in CLIP4Clip and its descendants (MSVD has 40 captions a video).

    Raises DataError as `best_captions` does.
    """
    best = best_captions(similarity, video_of_text, chunk)
    return summary(ranks(best, np.arange(len(best)), chunk))


def best_captions(
    similarity: np.ndarray, video_of_text: ArrayLike, chunk: int = CHUNK
) -> Float[np.ndarray, "videos videos"]:
    """How well each video [rows] matches the best caption of every video [columns].

    Raises DataError as `ranks` does, and if a video has no caption.
    """
    similarity = _matrix(similarity)
    texts, videos = similarity.shape
    target = _indices(video_of_text, texts, videos)
    captions = np.bincount(target, minlength=videos)  # [V]
    if not captions.all():
        raise DataError(
            f"{np.count_nonzero(captions == 0)} of {videos} videos have no caption, the first "
            f"is number {captions.argmin()}: exclude them from the gallery"
        )
    _require_finite(similarity, chunk)  # a maximum would hide -inf
    groups = np.split(np.argsort(target, kind="stable"), np.cumsum(captions)[:-1])
    return np.stack([similarity[rows].max(axis=0) for rows in groups], axis=1)


def summary(ranks: Float[np.ndarray, " queries"]) -> dict[str, float]:
    """`R@k`, the percentage of ranks up to k, median rank `MdR` and mean rank `MnR`."""
    recalls = {f"R@{k}": 100 * float(np.mean(ranks <= k)) for k in RECALLS}
    return recalls | {"MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def chance(videos: int) -> dict[str, float]:
    """The expected metrics of random scores, in either direction.

    For V2T they do not depend on the number of captions: summed over all N videos, the
    probabilities of being among the best k are k.
    """
    recalls = {f"R@{k}": 100 * min(k / videos, 1.0) for k in RECALLS}
    return recalls | {"MdR": (videos + 1) / 2, "MnR": (videos + 1) / 2}


def small_gallery_warning(split: str, videos: int) -> str:
    """A warning if there are so few videos that some recalls do not depend on the scores.

    The rank of a query is at most the number of videos, so that R@k of k or fewer videos is 100.
    An empty string if there are more than the largest k.
    """
    constant = [f"R@{k}" for k in RECALLS if k >= videos]
    if not constant:
        return ""
    names = ", ".join(constant[:-1]) + (" and " if constant[1:] else "") + constant[-1]
    return (
        f"split {split} has only {videos} video{'s' * (videos > 1)}: {names} "
        f"{'are' if constant[1:] else 'is'} 100 whatever the model; evaluate on more videos"
    )


def _matrix(similarity: np.ndarray) -> np.ndarray:
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or not similarity.size:
        raise DataError(f"a similarity must be [texts, videos], got shape {similarity.shape}")
    return similarity


def _indices(target: ArrayLike, rows: int, columns: int) -> np.ndarray:
    target = np.asarray(target)
    if target.shape != (rows,) or not np.issubdtype(target.dtype, np.integer):
        raise DataError(
            f"every row needs the index of its correct column: expected {rows} integers, "
            f"got {target.dtype} {target.shape}"
        )
    if target.min() < 0 or target.max() >= columns:
        raise DataError(
            f"correct columns must be from 0 to {columns - 1}, got {target.min()} to {target.max()}"
        )
    return target.astype(np.intp)


def _require_finite(similarity: np.ndarray, chunk: int) -> None:
    bad = np.concatenate(
        [
            ~np.isfinite(similarity[first : first + chunk]).all(axis=1)
            for first in range(0, len(similarity), chunk)
        ]
    )  # [Q]
    if bad.any():
        raise DataError(
            f"{np.count_nonzero(bad)} of {len(bad)} rows of the similarity hold NaN or infinity, "
            f"the first is row {bad.argmax()}: the weights or a clip's features are not finite"
        )

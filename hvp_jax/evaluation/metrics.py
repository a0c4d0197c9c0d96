"""Retrieval figures from a similarity matrix: R@k, median and mean rank, in both directions.

Rows of a matrix are texts, columns are videos, a greater number is a better match.
Every query has exactly one rank; ties share the mean of the places they take, so that
a model that scores everything alike is at chance whatever the order of the gallery.
"""

from collections.abc import Sequence

import numpy as np

from data.errors import DataError

RECALLS = (1, 5, 10, 50)
CHUNK = 1024  # rows looked at together: bounds the memory beside the matrix itself


def ranks(
    similarity: np.ndarray, target: Sequence[int] | np.ndarray, chunk: int = CHUNK
) -> np.ndarray:
    """The rank of the right answer of each query, from 1, float64 [Q].

    `similarity` [Q, N]; `target` int [Q] is the column of each query's right answer.
    The rank is 1 + the number of better columns + half the number of other columns that
    score the same. Raises DataError if a number is NaN or infinite.
    """
    similarity = _matrix(similarity)
    target = _indices(target, similarity.shape[0], similarity.shape[1])
    _require_finite(similarity, chunk)
    found = np.empty(len(similarity))
    for first in range(0, len(similarity), chunk):
        rows = similarity[first : first + chunk]  # [C, N]
        right = np.take_along_axis(rows, target[first : first + chunk, None], axis=1)  # [C, 1]
        better = np.count_nonzero(rows > right, axis=1)
        same = np.count_nonzero(rows == right, axis=1)  # itself included
        found[first : first + chunk] = 1 + better + (same - 1) / 2
    return found


def text_to_video(
    similarity: np.ndarray, video_of_text: Sequence[int] | np.ndarray, chunk: int = CHUNK
) -> dict[str, float]:
    """Figures of every caption looking for its video.

    `similarity` [texts, videos]; `video_of_text` int [texts] is the column of each
    caption's own video. Several captions of a video are queries of their own. Raises
    DataError as `ranks` does.
    """
    return summary(ranks(similarity, video_of_text, chunk))


def video_to_text(
    similarity: np.ndarray, video_of_text: Sequence[int] | np.ndarray, chunk: int = CHUNK
) -> dict[str, float]:
    """Figures of every video looking for its captions. Arguments as of `text_to_video`.

    A gallery entry is all the captions of one video, as good as the best of them: the
    rank of video j is 1 + the number of other videos that have a caption which matches
    j better than j's own best one. So ranks go up to the number of videos, not of
    captions, as CLIP4Clip and its descendants count them (MSVD has 40 captions a video).

    Raises DataError as `ranks` does, and if a video has no caption.
    """
    similarity = _matrix(similarity)
    texts, videos = similarity.shape
    target = _indices(video_of_text, texts, videos)
    captions = np.bincount(target, minlength=videos)  # [V]
    if not captions.all():
        raise DataError(
            f"{np.count_nonzero(captions == 0)} of {videos} videos have no caption, the first "
            f"is number {captions.argmin()}: leave them out of the gallery"
        )
    _require_finite(similarity, chunk)  # a maximum would hide -inf
    groups = np.split(np.argsort(target, kind="stable"), np.cumsum(captions)[:-1])
    best = np.stack([similarity[rows].max(axis=0) for rows in groups])  # [V of the texts, V]
    return summary(ranks(best.T, np.arange(videos), chunk))


def summary(ranks: np.ndarray) -> dict[str, float]:
    """`R@k`, the share of ranks up to k in percent, `MdR` and `MnR`, of ranks [Q]."""
    recalls = {f"R@{k}": 100 * float(np.mean(ranks <= k)) for k in RECALLS}
    return recalls | {"MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def chance(videos: int) -> dict[str, float]:
    """What scores that know nothing reach on average, in either direction.

    For V2T too, whatever the numbers of captions: over all videos, the chances of
    being among the best k of N groups add up to k.
    """
    recalls = {f"R@{k}": 100 * min(k / videos, 1.0) for k in RECALLS}
    return recalls | {"MdR": (videos + 1) / 2, "MnR": (videos + 1) / 2}


def _matrix(similarity: np.ndarray) -> np.ndarray:
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or not similarity.size:
        raise DataError(f"a similarity must be [texts, videos], got shape {similarity.shape}")
    return similarity


def _indices(target: Sequence[int] | np.ndarray, rows: int, columns: int) -> np.ndarray:
    target = np.asarray(target)
    if target.shape != (rows,) or not np.issubdtype(target.dtype, np.integer):
        raise DataError(
            f"every row needs the number of its right column: expected {rows} integers, "
            f"got {target.dtype} {target.shape}"
        )
    if target.min() < 0 or target.max() >= columns:
        raise DataError(
            f"right columns must be from 0 to {columns - 1}, got {target.min()} to {target.max()}"
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

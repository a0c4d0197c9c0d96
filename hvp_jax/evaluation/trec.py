"""An evaluation as TREC files, which other tools for retrieval read.

`run.trec` holds captions as queries and clips as documents, `run.v2t.trec` clips as queries and,
as documents, the captions of one clip together; `qrels.trec` and `qrels.v2t.trec` have the right
answers. Three things are not as a plain dump of scores would have them:

- The tools sort by score, as float32, and break ties by the document's name. In these files the
  scores strictly decrease: one that does not is lowered to the next smaller float32.
- Among the clips that tie with it, the right one is where our rank is, the mean of their places
  rounded up. Success@k and R@k are therefore equal to ours; the reciprocal rank is, where
  our rank is a whole number.
- An id is percent-encoded where it is not printable ASCII: a space would end its column.

A query has all clips, or the best `depth(...)` of them; tools count a right answer below that as
not found.
"""

import urllib.parse
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from data.storage.path import Path, PathLike
from hvp_jax.evaluation import metrics
from hvp_jax.evaluation.rankings import Rankings
from hvp_jax.monitoring import json_files

TAG = "hvp"
PAIRS = 1_000_000  # lines of a run, if that leaves each query at least LEAST documents
LEAST, MOST = 100, 1000  # documents of a query
PRINTABLE = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")


def write(
    folder: PathLike, rankings: Rankings, matrix: Float[np.ndarray, "captions clips"]
) -> None:
    """Writes the four files; `matrix` is what `rankings` was made of.

    Raises UsageError if a file cannot be written.
    """
    folder = Path(folder)
    captions, clips = map(_encoded, (rankings.caption_ids, rankings.clip_ids))
    own = rankings.clip_of_caption
    best = metrics.best_captions(matrix, own)
    _write_direction(folder, "", captions, clips, matrix, own)
    _write_direction(folder, ".v2t", clips, clips, best, np.arange(len(clips)))


def depth(queries: int, documents: int) -> int:
    """How many documents of each query a run holds."""
    return min(documents, MOST, max(LEAST, PAIRS // queries))


def ranked(
    scores: Float[np.ndarray, " documents"], target: int, rank: float
) -> tuple[Int[np.ndarray, " documents"], Float[np.ndarray, " documents"]]:
    """The documents of a query, best first, and strictly decreasing float32 scores of them.

    `target`, the right document, is at place `rank`, rounded up.
    """
    order = np.argsort(-scores, kind="stable")
    order = np.insert(order[order != target], int(np.ceil(rank)) - 1, target)
    bits = scores[order].astype(np.float32).view(np.int32).astype(np.int64)
    places = np.arange(len(order))
    # Floats in order as whole numbers: -0 and 0 are one.
    numbers = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    numbers = np.minimum.accumulate(numbers + places) - places
    bits = np.where(numbers < 0, -numbers - 2**31, numbers).astype(np.int32)
    return order, bits.view(np.float32)


def _encoded(ids: Sequence[str]) -> list[str]:
    return [urllib.parse.quote(name, safe=PRINTABLE, errors="surrogatepass") for name in ids]


def _write_direction(
    folder: Path,
    suffix: str,
    queries: list[str],
    documents: list[str],
    scores: np.ndarray,
    target: np.ndarray,
) -> None:
    pairs = zip(queries, target.tolist(), strict=True)
    relevant = "".join(f"{query} 0 {documents[right]} 1\n" for query, right in pairs)
    json_files.write_text_atomically(folder / f"qrels{suffix}.trec", relevant)
    with json_files.open_atomically(folder / f"run{suffix}.trec", "w", encoding="ascii") as file:
        file.writelines(_blocks(queries, documents, scores, target))


def _blocks(
    queries: list[str], documents: list[str], scores: np.ndarray, target: np.ndarray
) -> Iterator[str]:
    """The lines of each query."""
    kept = depth(len(queries), len(documents))
    ranks = metrics.ranks(scores, target).tolist()
    for query, row, right, rank in zip(queries, scores, target.tolist(), ranks, strict=True):
        order, values = ranked(row, right, rank)
        best = zip(order[:kept].tolist(), values[:kept].tolist(), strict=True)
        yield "".join(
            f"{query} Q0 {documents[document]} {place} {value:.9g} {TAG}\n"
            for place, (document, value) in enumerate(best, 1)
        )

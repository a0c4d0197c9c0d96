"""The verb `search`: finds the clips of an index that fit a text best, or that are like a video."""

import dataclasses
from typing import Any

from data.annotations import files
from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.parallel.compile_cache import use_compile_cache
from hvp_jax.search import recall
from hvp_jax.search.hits import describe, draw_sheet, gone
from hvp_jax.search.query import Hit, Index


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The hits of one query, or of each of several; the JSON has `hits` or `queries`."""

    answer: dict[str, Any] = dataclasses.field(metadata={"json": "**"})
    recall: dict[str, Any] | None  # None: not measured, or the query is a video
    text: str = dataclasses.field(metadata={"json": None})


def run(
    index: Path,
    texts: list[str],
    queries: Path | None = None,
    video: Path | None = None,
    *,
    k: int,
    candidates: int,
    where: str = "",
    exact: bool = False,
    sheet: Path | None = None,
    weights: Path | None = None,
) -> SearchResult:
    """Searches an index for texts, for the lines of a file, or for clips that are like a video."""
    if queries:
        texts = [*texts, *(line.strip() for _, line in files.read_lines(str(queries)))]
    if bool(texts) == bool(video):
        raise UsageError("give texts, --queries=FILE, or --video=FILE without texts")
    opened = Index.open(index, weights)
    use_compile_cache(opened.retriever.config.compile_cache, index)
    measured = None
    if video:
        names, found = [str(video)], [opened.search_by_video(video, k=k, where=where)]
    else:
        names = texts
        found = opened.search(texts, k=k, candidates=candidates, where=where, exact=exact)
        measured = opened.recall(max(k, candidates), exact)
    if sheet:
        draw_sheet(sheet, opened, names, found)
    lines = [describe(name, hits) for name, hits in zip(names, found, strict=True)]
    lines += [recall.describe(measured)] if measured else []
    lines += [f"warning: {path} is gone since it was indexed" for path in gone(opened, found)]
    return SearchResult(_answer(names, found), measured, "\n".join(lines))


def _answer(names: list[str], found: list[list[Hit]]) -> dict[str, Any]:
    """`hits` of one query; of several, `queries` with the hits of each."""
    listed = [[_fields(hit) for hit in hits] for hits in found]
    if len(names) == 1:
        return {"hits": listed[0]}
    pairs = zip(names, listed, strict=True)
    return {"queries": [{"query": name, "hits": hits} for name, hits in pairs]}


def _fields(hit: Hit) -> dict[str, Any]:
    """A hit in the JSON; a whole video is the stretch from 0 to its end."""
    start, end = (0.0, hit.duration) if hit.end is None else (hit.start, hit.end)
    return {"path": hit.path, "start": start, "end": end, "score": hit.score}

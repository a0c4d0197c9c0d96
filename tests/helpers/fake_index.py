"""An index without a model: its scores are how many letters a text and a path share."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError, UsageError
from data.records import Segment


@dataclasses.dataclass(frozen=True)
class FakeHit:
    id: str
    path: str
    start: float | None
    end: float | None
    score: float
    captions: str


class FakeIndex:
    """Clips by their ids, which are paths below `root`, "@start-end" for a stretch."""

    def __init__(self, root: Path | str, *ids: str, captions: str = ""):
        self.root, self.ids, self.captions = root, ids, captions
        self.calls: list[dict[str, Any]] = []
        self.open = threading.Event()  # while it is not set, searches wait
        self.open.set()
        self.started = threading.Event()

    def search(
        self, texts: Sequence[str], *, k: int, where: str, exact: bool
    ) -> list[list[FakeHit]]:
        self.calls.append({"texts": list(texts), "k": k, "where": where, "exact": exact})
        self.started.set()
        assert self.open.wait(30)
        for text in texts:
            if not text.strip():
                raise UsageError("the text '' is empty;\ndescribe what a video shows")
            if text == "a bug":
                raise ZeroDivisionError
        if "=" not in where and where:
            raise UsageError(f"--where={where}: no such column")
        return [self._hits(text)[:k] for text in texts]

    def similar(self, clip_id: str, *, k: int, where: str) -> list[FakeHit]:
        self.segment(clip_id)
        return [hit for hit in self._hits(clip_id) if hit.id != clip_id][:k]

    def segment(self, clip_id: str) -> Segment:
        if clip_id not in self.ids:
            raise DataError(f"the index has no clip {clip_id!r}")
        path, start, end = split(clip_id)
        return Segment(f"{self.root}/{path}", start, end)

    def _hits(self, text: str) -> list[FakeHit]:
        hits = [
            FakeHit(x, *split(x), score=float(len(set(text) & set(x))), captions=self.captions)
            for x in self.ids
        ]
        return sorted(hits, key=lambda hit: -hit.score)


def split(clip_id: str) -> tuple[str, float | None, float | None]:
    """Path, start and end of a clip."""
    path, at, stretch = clip_id.rpartition("@")
    if not at:
        return clip_id, None, None
    start, end = stretch.split("-")
    return path, float(start), float(end)

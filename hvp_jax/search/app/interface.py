"""What the page needs of an index: `hvp_jax.search.query.Index` has it, and so have fakes."""

from collections.abc import Sequence
from typing import Protocol

from data.records import Segment


class Hit(Protocol):
    """A clip that was found; `start` and `end` are seconds, None for a whole video."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def start(self) -> float | None: ...
    @property
    def end(self) -> float | None: ...
    @property
    def score(self) -> float: ...
    @property
    def captions(self) -> str: ...


class Searchable(Protocol):
    """An index that is open, with its model."""

    def search(
        self, texts: Sequence[str], *, k: int, where: str, exact: bool
    ) -> Sequence[Sequence[Hit]]:
        """For each text the `k` best clips, best first; UsageError for a wrong text or `where`."""
        ...

    def similar(self, clip_id: str, *, k: int, where: str) -> Sequence[Hit]:
        """The clips most like a clip of the index; an error of the user if there is none."""
        ...

    def segment(self, clip_id: str) -> Segment:
        """Where a clip is, with an absolute path; an error of the user if it is not there."""
        ...

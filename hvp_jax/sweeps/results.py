"""The results of a sweep: what its runs have left in their folders, as one table."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The table of a sweep; `text` is the table in Markdown."""

    text: str = dataclasses.field(metadata={"json": None})


def summarize(folder: Path) -> SweepResult:
    """Reads the manifest.json and the runs of a sweep's folder, and writes the table's files."""
    raise NotImplementedError(folder)

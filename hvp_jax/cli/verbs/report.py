"""The verb `report`: the table of a sweep, made again, or the figures of one run."""

import dataclasses
import json
from typing import Any

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.evaluation import costs, report
from hvp_jax.monitoring.metric_rows.files import has_rows, read_rows
from hvp_jax.sweeps.manifest import MANIFEST_FILE
from hvp_jax.sweeps.results import SweepResult, summarize


@dataclasses.dataclass(frozen=True)
class RunReport:
    """A run: the last step that it has logged, its latest figures of `split`, and its cost.

    The figures are those of eval.json, or while the run trains, of its last validation.
    """

    step: int
    split: str | None
    text_to_video: dict[str, float]
    video_to_text: dict[str, float]
    counts: dict[str, int]
    cost: dict[str, Any]

    @property
    def text(self) -> str:
        parts = [f"step {self.step}"]
        if self.split:
            parts[0] += f", split {self.split}"
            parts.append(report.table(self.text_to_video, self.video_to_text, self.counts))
        if self.cost:
            parts.append("\n".join(f"{name}: {value}" for name, value in self.cost.items()))
        return "\n\n".join(parts)


def run(workdir: Path) -> SweepResult | RunReport:
    """Reads a sweep's or a run's folder; of a sweep, it writes the table's files again.

    Raises UsageError if the folder holds neither.
    """
    if (workdir / MANIFEST_FILE).exists():
        return summarize(workdir)
    if not has_rows(workdir):
        raise UsageError(f"--workdir={workdir} holds neither a sweep nor a run")
    rows = read_rows(workdir)
    path = workdir / "eval.json"
    figures: dict[str, Any] = {}
    try:
        validations = [row for row in rows if "text_to_video" in row]
        figures = (
            json.loads(storage.read_text(path)) if path.exists() else (validations or [{}])[-1]
        )
        return RunReport(
            step=rows[-1]["step"] if rows else 0,
            split=figures.get("split"),
            **{key: figures.get(key, {}) for key in ("text_to_video", "video_to_text", "counts")},
            cost=costs.read(workdir),
        )
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged, run `eval` again: {error}") from None

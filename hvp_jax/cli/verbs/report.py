"""The verb `report`: the table of a sweep, made again, or where one run is and its figures."""

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
from hvp_jax.training import run_progress
from hvp_jax.training.run_progress import RunProgress


@dataclasses.dataclass(frozen=True)
class RunReport:
    """A run: its progress, its latest figures of `split`, and its cost.

    The figures are those of eval.json, or while the run trains, of its last validation.
    """

    step: int  # the last that it has logged
    progress: RunProgress
    split: str | None
    evaluated_step: int | None
    text_to_video: dict[str, float]
    video_to_text: dict[str, float]
    counts: dict[str, int]
    cost: dict[str, Any]

    @property
    def text(self) -> str:
        parts = [self.progress.text]
        if self.split:
            at = "" if self.evaluated_step is None else f" at step {self.evaluated_step}"
            table = report.table(self.text_to_video, self.video_to_text, self.counts)
            parts.append(f"split {self.split}{at}\n{table}")
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
            progress=run_progress.read(Path(workdir), rows),
            split=figures.get("split"),
            evaluated_step=figures.get("step", figures.get("checkpoint", {}).get("step")),
            **{key: figures.get(key, {}) for key in ("text_to_video", "video_to_text", "counts")},
            cost=costs.read(workdir),
        )
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged, run `eval` again: {error}") from None

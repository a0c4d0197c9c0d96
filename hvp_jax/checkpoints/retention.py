"""Which checkpoints of a run are kept, and which one is the best."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.checkpoints import manifest
from hvp_jax.config.schema import SELECT_BY

log = logging.getLogger(__name__)

DIRECTIONS = ("text_to_video", "video_to_text")
RSUM = ("R@1", "R@5", "R@10")  # summed over both directions, the field's single metric

OPTIMISTIC = (
    "train.select_on=test: the checkpoint is the best of several on the test split itself, so "
    "the metrics are optimistic"
)


def selection_scores(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a validation split that may select a checkpoint: name -> value."""
    flat = {f"{way}/{name}": value for way in DIRECTIONS for name, value in metrics[way].items()}
    flat["rsum"] = sum(flat[f"{way}/{name}"] for way in DIRECTIONS for name in RSUM)
    return {name: flat[name] for name in SELECT_BY if name in flat}


def best_step(scored: dict[int, dict[str, Any]], select_by: str) -> int | None:
    """The step with the best score by one of `SELECT_BY`; None if no step has that score.

    Ties go to the latest step, which is kept in any case.
    """
    lower_is_better = select_by.endswith(("MdR", "MnR"))  # ranks
    sign = -1 if lower_is_better else 1
    values = {
        step: sign * scores[select_by] for step, scores in scored.items() if select_by in scores
    }
    return max(values, key=lambda step: (values[step], step), default=None)


class StepScores:
    """The validation scores of the steps in the folder `path`, and the best step by them.

    `select_by` is one of `SELECT_BY`; empty: the run's own, recorded with its steps.
    """

    def __init__(self, path: Path, select_by: str):
        self._path, self._select_by = path, select_by
        self._scores: dict[int, dict[str, Any]] = {}  # by step; {}: not evaluated

    def add(self, step: int, metrics: dict[str, Any] | None) -> dict[str, Any]:
        """The scores to record with a step that is being written; {} if it was not evaluated."""
        scores: dict[str, Any] = {}
        if metrics:
            scores |= selection_scores(metrics)
            scores |= {"split": metrics["split"], "chosen_by": self._metric_name()}
        self._scores[step] = scores
        return scores

    def best(self, steps: Sequence[int]) -> int | None:
        """The best of some steps; None if none of them has the metric."""
        for step in steps:
            if step not in self._scores:
                self._scores[step] = self._read(step)
        return best_step({s: self._scores[s] for s in steps}, self._metric_name())

    def select(self, steps: Sequence[int]) -> dict[str, Any]:
        """The step to score with, as `Checkpointer.select_step` returns it."""
        step = self.best(steps)
        if step is None:
            return {"step": max(steps), "chosen_on": None}
        scores, name = self._scores[step], self._metric_name()
        split = scores.get("split", "val")
        selected = {"step": step, "chosen_on": split, "chosen_by": name, name: scores[name]}
        return selected | ({"warning": OPTIMISTIC} if split == "test" else {})

    def _metric_name(self) -> str:
        """The name of the metric that selects the best step."""
        recorded = [x["chosen_by"] for _, x in sorted(self._scores.items()) if "chosen_by" in x]
        return self._select_by or (recorded or ["rsum"])[-1]

    def _read(self, step: int) -> dict[str, Any]:
        folder = self._path / str(step)
        try:
            recorded = manifest.read(folder)
            if recorded:
                return recorded["metrics"] or {}
            # Written before there were manifests: Orbax's own file.
            metrics = folder / "metrics" / "metrics"
            return json.loads(storage.read_bytes(metrics)) if metrics.is_file() else {}
        except (manifest.CorruptCheckpoint, ValueError) as error:
            log.warning("warning: %s: ignored when selecting the best step", error)
            return {}


class _KeepBest(policy.PreservationPolicy):
    """Keeps the step that `best` selects among the existing ones.

    Orbax's own policy reads metrics from files of its own, which it does not verify.
    """

    def __init__(self, best: Callable[[Sequence[int]], int | None]):
        self._best = best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [int(info.step) for info in checkpoints]
        best = self._best(steps)
        return [step == best for step in steps]


def preservation_policy(
    max_to_keep: int, keep_period: int, best: Callable[[Sequence[int]], int | None]
) -> policy.PreservationPolicy:
    """Keeps the `max_to_keep` newest steps, the best, and multiples of `keep_period` (0: none)."""
    rules = [policy.LatestN(max_to_keep), _KeepBest(best)]
    return policy.AnyPreservationPolicy(
        rules + ([policy.EveryNSteps(keep_period)] if keep_period else [])
    )

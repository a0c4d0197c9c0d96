"""Which checkpoints of a run are kept, and which one is the best."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from hvp_jax.checkpoints import manifest
from hvp_jax.config.schema import SELECT_BY

log = logging.getLogger(__name__)

WAYS = ("text_to_video", "video_to_text")
RSUM = ("R@1", "R@5", "R@10")  # of both directions, the field's single figure


def selection_scores(figures: dict) -> dict[str, float]:
    """What a checkpoint may be chosen by, of a validation split's figures: name -> value."""
    flat = {f"{way}/{name}": value for way in WAYS for name, value in figures[way].items()}
    flat["rsum"] = sum(flat[f"{way}/{name}"] for way in WAYS for name in RSUM)
    return {name: flat[name] for name in SELECT_BY if name in flat}


def best_step(scored: dict[int, dict[str, float]], select_by: str) -> int | None:
    """The step whose scores are the best by one of `SELECT_BY`; None where none has it.

    Of equals it is the latest, the one that is kept anyway.
    """
    less = select_by.endswith(("MdR", "MnR"))  # ranks: the lower the better
    found = {step: each[select_by] for step, each in scored.items() if select_by in each}
    return max(found, key=lambda s: (-found[s] if less else found[s], s), default=None)


OPTIMISTIC = (
    "train.select_on=test: the checkpoint is the best of several on the test split itself, so "
    "the figures are optimistic"
)


class StepScores:
    """What the steps in the folder `path` scored on validation, and which is the best of them.

    `select_by` is one of `SELECT_BY`; empty, the run's own, noted with its steps.
    """

    def __init__(self, path: Path, select_by: str):
        self._path, self._select_by = path, select_by
        self._scores: dict[int, dict] = {}  # by step, with their split; {}: not evaluated

    def add(self, step: int, figures: dict | None) -> dict:
        """The scores of a step that is being written, None if it was not evaluated."""
        found = selection_scores(figures) if figures else {}
        if figures:
            found |= {"split": figures["split"], "chosen_by": self._figure()}
        self._scores[step] = found
        return found

    def best(self, steps: Sequence[int]) -> int | None:
        """The best of some steps; None where none has the figure."""
        for step in steps:
            if step not in self._scores:
                self._scores[step] = self._read(step)
        return best_step({s: self._scores[s] for s in steps}, self._figure())

    def choice(self, steps: Sequence[int]) -> dict:
        """The step to score with, as `Checkpoints.chosen` tells it."""
        step = self.best(steps)
        if step is None:
            return {"step": max(steps), "chosen_on": None}
        found, name = self._scores[step], self._figure()
        split = found.get("split", "val")
        about = {"step": step, "chosen_on": split, "chosen_by": name, name: found[name]}
        return about | ({"warning": OPTIMISTIC} if split == "test" else {})

    def _figure(self) -> str:
        """The name of what the best is chosen by."""
        noted = [x["chosen_by"] for _, x in sorted(self._scores.items()) if "chosen_by" in x]
        return self._select_by or (noted or ["rsum"])[-1]

    def _read(self, step: int) -> dict:
        folder = self._path / str(step)
        try:
            found = manifest.read(folder)
            if found:
                return found["metrics"] or {}
            # Of the time before checksums: Orbax's own file.
            metrics = folder / "metrics" / "metrics"
            return json.loads(metrics.read_bytes()) if metrics.is_file() else {}
        except (manifest.CorruptCheckpoint, ValueError) as error:
            log.warning("warning: %s: passed over in choosing the best step", error)
            return {}


class _KeepBest(policy.PreservationPolicy):
    """Keeps the step that `best` names among those there are.

    Orbax's own asks for figures in files of its own, which it does not verify.
    """

    def __init__(self, best: Callable[[Sequence[int]], int | None]):
        self._best = best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = [int(info.step) for info in checkpoints]
        kept = self._best(steps)
        return [step == kept for step in steps]


def preservation_policy(
    max_to_keep: int, keep_period: int, best: Callable
) -> policy.PreservationPolicy:
    """Keeps the `max_to_keep` newest steps, the best, and multiples of `keep_period` (0: none)."""
    rules = [policy.LatestN(max_to_keep), _KeepBest(best)]
    return policy.AnyPreservationPolicy(
        rules + ([policy.EveryNSteps(keep_period)] if keep_period else [])
    )

"""Which checkpoints of a run are kept, which one is the best, and when there is no room."""

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from hvp_jax.config import BEST_BY
from hvp_jax.errors import BadData

WAYS = ("text_to_video", "video_to_text")
RSUM = ("R@1", "R@5", "R@10")  # of both directions, the field's single figure
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXTS = ("No space left", "quota exceeded", "File too large", "RESOURCE_EXHAUSTED")


def scores(figures: dict) -> dict[str, float]:
    """What a checkpoint may be chosen by, of a validation split's figures: name -> value."""
    flat = {f"{way}/{name}": value for way in WAYS for name, value in figures[way].items()}
    flat["rsum"] = sum(flat[f"{way}/{name}"] for way in WAYS for name in RSUM)
    return {name: flat[name] for name in BEST_BY if name in flat}


def best(scored: dict[int, dict[str, float]], best_by: str) -> int | None:
    """The step whose scores are the best by one of `BEST_BY`; None where none has it.

    Of equals it is the latest, the one that is kept anyway.
    """
    less = best_by.endswith(("MdR", "MnR"))  # ranks: the lower the better
    found = {step: each[best_by] for step, each in scored.items() if best_by in each}
    return max(found, key=lambda s: (-found[s] if less else found[s], s), default=None)


class _Best(policy.PreservationPolicy):
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


def policies(keep: int, keep_every: int, best: Callable) -> policy.PreservationPolicy:
    """Keeps the `keep` newest steps, the best, and those that `keep_every` divides (0: none)."""
    rules = [policy.LatestN(keep), _Best(best)]
    return policy.AnyPreservationPolicy(
        rules + ([policy.EveryNSteps(keep_every)] if keep_every else [])
    )


@contextlib.contextmanager
def room(path: Path, step: int | None) -> Iterator[None]:
    """Writing `step` into `path` within: if there is no room for it, BadData in one line.

    The steps that are there stay, and what was written of this one goes.
    """
    try:
        yield
    except Exception as error:
        if not _no_space(error):
            raise
        clear(path)
        whole = [int(found.name) for found in path.glob("*") if found.name.isdigit()]
        last = f"the last good one is step {max(whole)}" if whole else "there is none before it"
        raise BadData(
            f"checkpoint of step {step} could not be written to {path}: no space left; "
            f"{last}: make room and run the same command again"
        ) from None


def clear(path: Path) -> None:
    """Removes what was written in part, by this run or one that was killed."""
    if jax.process_index() == 0:
        for found in path.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(found, ignore_errors=True)


def _no_space(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is a disk, quota or file that is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(text in str(error) for text in FULL_TEXTS) and "memory" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False

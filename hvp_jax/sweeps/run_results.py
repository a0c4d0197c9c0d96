"""What one run has left in its workdir: figures, ranks and costs."""

import json
from typing import Any, NamedTuple

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.evaluation import costs, rankings
from hvp_jax.sweeps.manifest import ERROR_FILE


class RunResult(NamedTuple):
    """A finished run: its eval.json, ranks.npz and cost.json."""

    evaluation: dict[str, Any]
    ranks: rankings.Rankings
    cost: dict[str, Any]


class Protocol(NamedTuple):
    """How a run was evaluated. Figures are comparable only if it is the same.

    `clips` is the fingerprint of clips and captions; `scoring` has the scoring settings of
    eval.json, and which split the checkpoint was chosen on.
    """

    split: str
    clips: str
    scoring: dict[str, Any]


def read_run(folder: Path) -> RunResult:
    """What `train` has written to `folder` at its end.

    Raises DataError, with the reason, if the run is not finished or its files are damaged.
    """
    error = folder / ERROR_FILE
    if error.exists():
        text = " ".join(storage.read_text(error, "replace").split())
        raise DataError(f"failed: {text or 'without a message'}")
    if not folder.exists():
        raise DataError("not started")
    cost = costs.read(folder)
    if not cost:  # an eval.json alone may be of the verb `eval`, before the run has ended
        raise DataError("not finished")
    path = folder / "eval.json"
    try:
        evaluation = json.loads(storage.read_text(path))
        missing = {"split", "scoring", "checkpoint"} - set(evaluation)
    except FileNotFoundError:
        raise DataError("not finished") from None
    except (ValueError, TypeError) as problem:
        raise DataError(f"{path} is damaged, run `eval` again: {problem}") from None
    if missing:
        raise DataError(f"{path} has no {', '.join(sorted(missing))}: run `eval` again")
    ranks = rankings.read(folder)
    if ranks.split != evaluation["split"]:
        raise DataError(f"{path} is of another evaluation than its ranks: run `eval` again")
    return RunResult(evaluation, ranks, cost)


def protocol(run: RunResult) -> Protocol:
    scoring = {k: v for k, v in run.evaluation["scoring"].items() if k != "warning"}
    scoring["checkpoint chosen on"] = run.evaluation["checkpoint"].get("chosen_on")
    return Protocol(run.ranks.split, run.ranks.data, scoring)


def other_data(run: Protocol, base: Protocol) -> str:
    """Why the queries of two runs are not the same; empty if they are."""
    if run.split != base.split:
        return f"split is {run.split}, not {base.split}"
    if run.clips != base.clips:
        return f"the clips or captions of split {run.split} are others"
    return ""


def other_scoring(run: Protocol, base: Protocol) -> str:
    """How the scoring of two runs differs; empty if it does not."""
    keys = sorted(run.scoring.keys() | base.scoring.keys())
    pairs = [(key, run.scoring.get(key), base.scoring.get(key)) for key in keys]
    return ", ".join(f"{key} is {a}, not {b}" for key, a, b in pairs if a != b)

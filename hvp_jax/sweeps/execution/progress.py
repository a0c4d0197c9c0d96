"""The progress of a sweep on stderr: a bar on a terminal, and a line for every run that ends."""

import sys

from tqdm import tqdm

from hvp_jax.sweeps.execution.runs import Run


def progress_bar(total: int, done: int) -> tqdm:
    """A bar of runs; to be used in `with`."""
    return tqdm(total=total, initial=done, desc="sweep", unit="run", disable=None)


def report(bar: tqdm, run: Run) -> None:
    """One more run has ended: advances the bar and says how it ended."""
    bar.n += 1  # not update(), which a bar that is not shown ignores
    bar.refresh()
    error = run.error()
    outcome = f"failed: {error} (see {run.workdir})" if error else "finished"
    tqdm.write(f"{bar.n} of {bar.total}: {run.name} {outcome}", file=sys.stderr)

"""Where a run is, from the files of its workdir alone."""

import contextlib
import dataclasses
import datetime
import json
import statistics
from typing import Any

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.monitoring import process_identity
from hvp_jax.monitoring.workdir_lock import LOCK_FILE, PATIENCE
from hvp_jax.training import run_history

RECENT = 10  # the rate is the median of so many rows


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Where a run is, how fast it is, and what restarts have cost it; None is not recorded.

    `state` is running, finished, stopped, or lost: it holds the workdir without a heartbeat.
    `goodput` is the share of the seconds from the first start until now, or until the end, that
    were spent in steps that count: not in compiling, evaluating and saving, in steps that a
    restart did again, or in waiting for machines. `lost_steps` are those that had been logged.
    """

    state: str
    host: str | None
    heartbeat_age_s: float | None  # of a run that holds the workdir
    step: int
    steps: int | None
    steps_per_s: float | None = dataclasses.field(metadata={"json": "steps/s"})
    examples_per_s: float | None = dataclasses.field(metadata={"json": "examples/s"})
    input_wait_share: float | None
    seconds_left: float | None
    loss: float | None
    skipped: int | None
    restarts: int | None
    lost_steps: int | None
    seconds: float | None
    kept_seconds: float | None
    goodput: float | None

    @property
    def text(self) -> str:
        first = f"step {self.step}{f' of {self.steps}' if self.steps else ''}, {self.state}"
        if self.heartbeat_age_s is not None:
            first += f" on host {self.host}, last heartbeat {_clock(self.heartbeat_age_s)} ago"
        lines = [first]
        if self.steps_per_s is not None:
            line = f"{self.steps_per_s:.3g} steps/s, {self.examples_per_s:,.0f} examples/s"
            if self.input_wait_share is not None:
                line += f", {self.input_wait_share:.0%} of the time waiting for input"
            if self.seconds_left:
                line += f"; {_clock(self.seconds_left)} left"
            lines.append(line)
        if self.loss is not None:
            skipped = "" if self.skipped is None else f", {self.skipped} updates skipped"
            lines.append(f"loss {self.loss:.4f}{skipped}")
        if self.restarts is not None:
            line = f"{self.restarts} restarts, {self.lost_steps} logged steps lost"
            if self.goodput is not None and self.kept_seconds is not None:
                line += (
                    f"; goodput {self.goodput:.0%}: {_clock(self.kept_seconds)} in steps that "
                    f"count, of {_clock(self.seconds)} since the first start"
                )
            lines.append(line)
        return "\n".join(lines)


def read(workdir: Path, rows: list[dict[str, Any]]) -> RunProgress:
    """The progress of the run in a workdir that has logged `rows`.

    Raises DataError if a file of the run is damaged.
    """
    lock = _read_lock(workdir)
    starts = run_history.read(workdir)
    step = rows[-1]["step"] if rows else (starts[-1].step if starts else 0)
    steps = _total_steps(workdir)
    measured = [row["measured"] for row in rows if row.get("measured", {}).get("steps/s")]
    recent = measured[-RECENT:]
    rate = statistics.median(m["steps/s"] for m in recent) if recent else None
    last: dict[str, Any] = next((row for row in reversed(rows) if "loss" in row), {})
    age = _seconds_between(lock["heartbeat"], process_identity.now()) if lock else None
    state = _state(lock, age, finished=steps is not None and step >= steps)
    kept = _kept_seconds(rows, starts[0].step if starts else 0) if starts else None
    seconds = _wall_seconds(starts, lock, state) if starts else None
    return RunProgress(
        state=state,
        host=lock.get("host") or (starts[-1].host if starts else None),
        heartbeat_age_s=age,
        step=step,
        steps=steps,
        steps_per_s=rate,
        examples_per_s=_median(recent, "examples/s"),
        input_wait_share=_median(recent, "input_wait_share"),
        seconds_left=max(steps - step, 0) / rate if steps and rate else None,
        loss=last.get("loss"),
        skipped=last.get("skipped"),
        restarts=len(starts) - 1 if starts else None,
        lost_steps=sum(start.reached - start.step for start in starts) if starts else None,
        seconds=seconds,
        kept_seconds=kept,
        goodput=min(kept / seconds, 1.0) if kept is not None and seconds else None,
    )


def _state(lock: dict[str, Any], age: float | None, *, finished: bool) -> str:
    if age is not None:
        alive = process_identity.is_alive(lock)
        # On another host: by its clock, which need not agree with this one to the second.
        if alive or (alive is None and age < PATIENCE):
            return "running"
    if finished:
        return "finished"
    return "stopped" if age is None else "lost"


def _wall_seconds(
    starts: list[run_history.Start], lock: dict[str, Any], state: str
) -> float | None:
    """From the first start until now; if the run does not go on, until its last heartbeat."""
    end = starts[-1].ended or lock.get("heartbeat")
    if state == "running" and starts[-1].ended is None:
        end = process_identity.now()
    return _seconds_between(starts[0].started, end) if end else None


def _kept_seconds(rows: list[dict[str, Any]], first: int) -> float:
    """The time of the steps in `rows`, each at the rate of the next row that has one."""
    seconds, before = 0.0, first
    for row in rows:
        if rate := row.get("measured", {}).get("steps/s"):
            seconds += (row["step"] - before) / rate
            before = row["step"]
    return seconds


def _median(measured: list[dict[str, float]], name: str) -> float | None:
    values = [m[name] for m in measured if m.get(name) is not None]
    return statistics.median(values) if values else None


def _read_lock(workdir: Path) -> dict[str, Any]:
    """What the run that holds the workdir has written; {} if none does, or it just begins to."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        lock = json.loads(storage.read_text(workdir / LOCK_FILE))
        return lock if "heartbeat" in lock else {}
    return {}


def _total_steps(workdir: Path) -> int | None:
    path = workdir / "config.json"
    try:
        return json.loads(storage.read_text(path))["train"]["steps"] or None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _seconds_between(start: str, end: str) -> float:
    begin, until = map(datetime.datetime.fromisoformat, (start, end))
    return max((until - begin).total_seconds(), 0.0)


def _clock(seconds: float | None) -> str:
    return str(datetime.timedelta(seconds=round(seconds or 0)))

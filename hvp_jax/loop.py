"""The loop of training. Its order is law: step, then evaluate, then save.

Whatever stops a run does so after a whole step and a checkpoint. Figures of a step are
read once the next one is on its way: telling them stalls nothing.
"""

import dataclasses
import functools
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from data import pipeline
from hvp_jax import optim, parallel, report, step
from hvp_jax.checkpoint import Checkpoints
from hvp_jax.errors import BadData
from hvp_jax.meter import Meter
from hvp_jax.monitor import Monitor
from hvp_jax.profiling import Trace
from hvp_jax.step import Recipe, State
from hvp_jax.watch import DEVICES, Watch


class Stop:
    """Remembers the first SIGTERM or SIGINT; the second one has its usual effect."""

    def __enter__(self) -> "Stop":
        self.name = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, frame) -> None:
        del frame
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()


@dataclasses.dataclass
class Loop:
    """What it works with. `schedule_steps`: of the rate; `validate`: parameters to figures."""

    config: ConfigDict
    layout: parallel.Layout
    recipe: Recipe
    schedule_steps: int
    batches: Iterator
    checkpoints: Checkpoints
    show: Monitor
    meter: Meter
    watch: Watch
    trace: Trace
    stop: Stop
    validate: Callable[[Any], dict] | None

    def run(self, state: State, at: int) -> tuple[State, int, bool]:
        """Steps until the run's end or a signal: the state, the step it is at, if it was stopped.

        Raises BadData where the loss was not finite for too many steps in a row.
        """
        train, total = self.config.train, self.config.train.steps
        train_step = self.layout.train(
            functools.partial(step.train_step, recipe=self.recipe), state
        )
        steady = pipeline.uninterrupted(self.batches)
        self._skipped, self._in_a_row, self._stopped = int(state.skipped), 0, False
        begun = saved = at
        pending = None
        while at < total and not self._stopped:
            self.watch.note(at, "reading a batch")
            with self.meter.waiting():
                batch = next(steady)
            self.trace.step(at + 1, pending)
            batch = self.layout.put(batch, bool(self.stop.name))
            if at == begun:
                self.watch.note(at, "compiling")
                with self.meter.paused():
                    train_step.lower(state, batch).compile()
                    # Where processes do not compile equally fast, one would wait too long.
                    parallel.wait("every process has compiled")
            self.watch.note(at, DEVICES)
            # Nothing but the batch goes to the devices, and nothing comes back unasked.
            with jax.transfer_guard("disallow"):
                state, figures = train_step(state, batch)
            at += 1
            self._read(pending)
            pending = (at, figures)
            evaluates = self.validate and (at % train.eval_every == 0 or at == total)
            if evaluates or at % train.checkpoint_every == 0 or at == total:
                pending = self._read(pending)
                self._conclude(state, at, evaluates)
                saved = at
            # Alone, it need not wait until its wish comes back from the devices.
            self._stopped |= bool(self.stop.name) and jax.process_count() == 1
        self._read(pending)
        if at != saved:
            self._conclude(state, at, False)
        return state, at, self._stopped

    def _read(self, pending: tuple[int, dict] | None) -> None:
        """Fetches the figures of a step, tells them if it is time, and heeds them."""
        if not pending:
            return
        at, figures = pending
        found = {name: x.item() for name, x in jax.device_get(figures).items()}
        self._stopped |= bool(found.pop("stop"))
        updates = at - 1 - self._skipped  # that came before this one
        train = self.config.train
        if at % train.log_every == 0 or at == train.steps:
            row = found | self._rates(updates) | {"temperature": math.exp(-found["log_scale"])}
            self.show.write(at, row | {"measured": self.meter.row(at)})
            self.show.progress(at, found["loss"])
        self._in_a_row = self._in_a_row + 1 if found["skipped"] > self._skipped else 0
        self._skipped = found["skipped"]
        if self._in_a_row >= train.most_skipped:
            raise BadData(
                f"the loss or its gradient was not finite for {self._in_a_row} steps in a row, up "
                f"to step {at}: lower optim.rate or optim.clip_rate, or look at the data "
                "(train.most_skipped says how many in a row are borne)"
            )

    def _rates(self, updates: int) -> dict[str, float]:
        """The rates of the update that `updates` others came before."""
        o = self.config.optim
        factor = float(optim.warmup_cosine(updates / self.schedule_steps, o.warmup))
        return {"rate": o.rate * factor, "clip_rate": o.clip_rate * factor}

    def _conclude(self, state: State, at: int, evaluates: bool) -> None:
        """Evaluates, if it is time, and saves."""
        scored = None
        with self.meter.paused(state), self.show.paused():
            if evaluates:
                self.watch.note(at, "evaluating")
                scored = self.validate(self.layout.whole(state.params))
                self.show.write(at, scored)
                self.show.say(f"step {at}  {scored['split']}  {report.line(scored)}")
            self.watch.note(at, "saving")
            self.checkpoints.save(at, self.layout.to_store(state), self.batches, scored)

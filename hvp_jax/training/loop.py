"""The loop of training. Its order is law: step, then evaluate, then save.

Whatever stops a run does so after a whole step and a checkpoint. Figures of a step are
read once the next one is on its way: telling them stalls nothing.
"""

import contextlib
import functools
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data.batches import pipeline
from data.errors import BadData
from hvp_jax.checkpoints.checkpointer import Checkpoints
from hvp_jax.config.schema import parse_profile
from hvp_jax.evaluation import report
from hvp_jax.models import flops
from hvp_jax.monitoring.metrics_logger import Monitor
from hvp_jax.monitoring.profiler import Trace
from hvp_jax.monitoring.throughput import Meter
from hvp_jax.monitoring.watchdog import DEVICES, Watch
from hvp_jax.parallel.partitioner import Layout
from hvp_jax.parallel.processes import is_first, process, wait
from hvp_jax.training.optimizer import warmup_cosine
from hvp_jax.training.step_spec import Recipe
from hvp_jax.training.train_state import State
from hvp_jax.training.train_step import train_step


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


class Loop:
    """Steps from `at` to the end of a run; to be used in `with`, which opens what it writes to:
    metrics, trace, watchdog, throughput, and holds the signals that stop a run.

    `schedule_steps` is the length of the rate's schedule, `width` the frames of a batch's clips.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        at: int,
        *,
        layout: Layout,
        recipe: Recipe,
        schedule_steps: int,
        batches: Iterator,
        checkpoints: Checkpoints,
        width: int,
    ):
        self.config, self.workdir, self._at = config, workdir, at
        self.layout, self.recipe, self.schedule_steps = layout, recipe, schedule_steps
        self.batches, self.checkpoints, self._width = batches, checkpoints, width

    def __enter__(self) -> "Loop":
        config, batch_size = self.config, self.config.train.batch_size
        devices, words = self.layout.devices, config.data.words
        operations = flops.training_step(self.recipe.model, batch_size, self._width, words)
        self.meter = Meter(self._at, batch_size, operations, devices, config.precision)
        traced = parse_profile(config.profile) if is_first() else None
        watch = Watch(self.workdir / "alive", config.train.stall_seconds, *process())
        with contextlib.ExitStack() as stack:
            show = Monitor(self.workdir, config.train.steps, self._at, writes=is_first())
            self.show = stack.enter_context(show)
            self.trace = stack.enter_context(Trace(self.workdir / "profile", traced))
            self.watch = stack.enter_context(watch)
            self.stop = stack.enter_context(Stop())
            self._within = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._within.__exit__(*error)

    def run(self, state: State, validate: Callable[[Any], dict] | None) -> tuple[State, int, bool]:
        """Steps until the run's end or a signal: the state, the step it is at, if it was stopped.

        `validate`: parameters to figures, None where no clip is to choose by. Raises BadData
        where the loss was not finite for too many steps in a row.
        """
        at, train, total = self._at, self.config.train, self.config.train.steps
        step = self.layout.train(functools.partial(train_step, recipe=self.recipe), state)
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
                    step.lower(state, batch).compile()
                    # Where processes do not compile equally fast, one would wait too long.
                    wait("every process has compiled")
            self.watch.note(at, DEVICES)
            # Nothing but the batch goes to the devices, and nothing comes back unasked.
            with jax.transfer_guard("disallow"):
                state, figures = step(state, batch)
            at += 1
            self._read(pending)
            pending = (at, figures)
            evaluates = validate is not None and (at % train.eval_every == 0 or at == total)
            if evaluates or at % train.checkpoint_every == 0 or at == total:
                pending = self._read(pending)
                self._conclude(state, at, validate if evaluates else None)
                saved = at
            # Alone, it need not wait until its wish comes back from the devices.
            self._stopped |= bool(self.stop.name) and jax.process_count() == 1
        self._read(pending)
        if at != saved:
            self._conclude(state, at, None)
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
        factor = float(warmup_cosine(updates / self.schedule_steps, o.warmup))
        return {"rate": o.rate * factor, "clip_rate": o.clip_rate * factor}

    def _conclude(self, state: State, at: int, validate: Callable[[Any], dict] | None) -> None:
        """Evaluates, if it is time, and saves."""
        scored = None
        with self.meter.paused(state), self.show.paused():
            if validate:
                self.watch.note(at, "evaluating")
                scored = validate(self.layout.whole(state.params))
                self.show.write(at, scored)
                self.show.say(f"step {at}  {scored['split']}  {report.line(scored)}")
            self.watch.note(at, "saving")
            items = self.layout.to_store(state).items()
            self.checkpoints.save(at, items, self.batches, scored)

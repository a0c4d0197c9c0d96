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
from data.errors import DataError
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.config.schema import parse_profile
from hvp_jax.evaluation import report
from hvp_jax.models import flops
from hvp_jax.monitoring.metrics_logger import MetricsLogger
from hvp_jax.monitoring.profiler import StepProfiler
from hvp_jax.monitoring.throughput import ThroughputMeter
from hvp_jax.monitoring.watchdog import WAITING_FOR_DEVICES, Watchdog
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import barrier, is_primary, process_index_and_count
from hvp_jax.training.optimizer import warmup_cosine
from hvp_jax.training.step_spec import StepSpec
from hvp_jax.training.train_state import TrainState
from hvp_jax.training.train_step import train_step


class SignalHandler:
    """Remembers the first SIGTERM or SIGINT; the second one has its usual effect."""

    def __enter__(self) -> "SignalHandler":
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


class TrainLoop:
    """Steps from `at` to the end of a run; to be used in `with`, which opens what it writes to:
    metrics, trace, watchdog, throughput, and holds the signals that stop a run.

    `schedule_steps` is the length of the learning rate's schedule, `num_frames` that of the clips.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        at: int,
        *,
        partitioner: Partitioner,
        spec: StepSpec,
        schedule_steps: int,
        batches: Iterator,
        checkpointer: Checkpointer,
        num_frames: int,
    ):
        self.config, self.workdir, self._at = config, workdir, at
        self.partitioner, self.spec, self.schedule_steps = partitioner, spec, schedule_steps
        self.batches, self.checkpointer, self._num_frames = batches, checkpointer, num_frames

    def __enter__(self) -> "TrainLoop":
        config, batch_size = self.config, self.config.train.batch_size
        devices, words = self.partitioner.devices, config.data.max_words
        operations = flops.training_step(self.spec.model, batch_size, self._num_frames, words)
        self.throughput = ThroughputMeter(
            self._at, batch_size, operations, devices, config.precision
        )
        traced = parse_profile(config.profile) if is_primary() else None
        watch = Watchdog(
            self.workdir / "alive", config.train.stall_timeout, *process_index_and_count()
        )
        with contextlib.ExitStack() as stack:
            show = MetricsLogger(self.workdir, config.train.steps, self._at, writes=is_primary())
            self.metrics = stack.enter_context(show)
            self.profiler = stack.enter_context(StepProfiler(self.workdir / "profile", traced))
            self.watchdog = stack.enter_context(watch)
            self.signals = stack.enter_context(SignalHandler())
            self._within = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._within.__exit__(*error)

    def run(
        self, state: TrainState, validate: Callable[[Any], dict] | None
    ) -> tuple[TrainState, int, bool]:
        """Steps until the run's end or a signal: the state, the step it is at, if it was stopped.

        `validate`: parameters to figures, None where no clip is to choose by. Raises DataError
        where the loss was not finite for too many steps in a row.
        """
        at, train, total = self._at, self.config.train, self.config.train.steps
        step = self.partitioner.compile_train_step(
            functools.partial(train_step, spec=self.spec), state
        )
        steady = pipeline.uninterrupted(self.batches)
        self._skipped, self._in_a_row, self._stopped = int(state.skipped), 0, False
        begun = saved = at
        pending = None
        while at < total and not self._stopped:
            self.watchdog.heartbeat(at, "reading a batch")
            with self.throughput.waiting():
                batch = next(steady)
            self.profiler.step(at + 1, pending)
            batch = self.partitioner.shard_batch(batch, bool(self.signals.name))
            if at == begun:
                self.watchdog.heartbeat(at, "compiling")
                with self.throughput.paused():
                    step.lower(state, batch).compile()
                    # Where processes do not compile equally fast, one would wait too long.
                    barrier("every process has compiled")
            self.watchdog.heartbeat(at, WAITING_FOR_DEVICES)
            # Nothing but the batch goes to the devices, and nothing comes back unasked.
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            at += 1
            self._log_metrics(pending)
            pending = (at, metrics)
            evaluates = validate is not None and (at % train.eval_every == 0 or at == total)
            if evaluates or at % train.checkpoint_every == 0 or at == total:
                pending = self._log_metrics(pending)
                self._evaluate_and_save(state, at, validate if evaluates else None)
                saved = at
            # Alone, it need not wait until its wish comes back from the devices.
            self._stopped |= bool(self.signals.name) and jax.process_count() == 1
        self._log_metrics(pending)
        if at != saved:
            self._evaluate_and_save(state, at, None)
        return state, at, self._stopped

    def _log_metrics(self, pending: tuple[int, dict] | None) -> None:
        """Fetches the figures of a step, tells them if it is time, and heeds them."""
        if not pending:
            return
        at, metrics = pending
        found = {name: x.item() for name, x in jax.device_get(metrics).items()}
        self._stopped |= bool(found.pop("stop"))
        updates = at - 1 - self._skipped  # that came before this one
        train = self.config.train
        if at % train.log_every == 0 or at == train.steps:
            row = (
                found
                | self._learning_rates(updates)
                | {"temperature": math.exp(-found["log_scale"])}
            )
            self.metrics.write(at, row | {"measured": self.throughput.measure(at)})
            self.metrics.progress(at, found["loss"])
        self._in_a_row = self._in_a_row + 1 if found["skipped"] > self._skipped else 0
        self._skipped = found["skipped"]
        if self._in_a_row >= train.max_skipped_updates:
            raise DataError(
                f"the loss or its gradient was not finite for {self._in_a_row} steps in a row, up "
                f"to step {at}: lower optim.learning_rate or optim.clip_learning_rate, or look "
                "at the data (train.max_skipped_updates says how many in a row are borne)"
            )

    def _learning_rates(self, updates: int) -> dict[str, float]:
        """The rates of the update that `updates` others came before."""
        o = self.config.optim
        factor = float(warmup_cosine(updates / self.schedule_steps, o.warmup_fraction))
        return {
            "learning_rate": o.learning_rate * factor,
            "clip_learning_rate": o.clip_learning_rate * factor,
        }

    def _evaluate_and_save(
        self, state: TrainState, at: int, validate: Callable[[Any], dict] | None
    ) -> None:
        """Evaluates, if it is time, and saves."""
        scored = None
        with self.throughput.paused(state), self.metrics.paused():
            if validate:
                self.watchdog.heartbeat(at, "evaluating")
                scored = validate(self.partitioner.replicate_params(state.params))
                self.metrics.write(at, scored)
                self.metrics.print(f"step {at}  {scored['split']}  {report.line(scored)}")
            self.watchdog.heartbeat(at, "saving")
            items = self.partitioner.to_global(state).items()
            self.checkpointer.save(at, items, self.batches, scored)

"""The training loop.

Invariant: each iteration runs one step, then evaluates if it is time, then saves if it is time.
A run therefore ends only after a complete step and its checkpoint, whatever stops it, and a
checkpoint of a step that was evaluated holds the metrics of that evaluation.

The metrics of a step are fetched after the next step has been dispatched, so that logging does
not stall the devices.
"""

import contextlib
import functools
import math
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
from ml_collections import ConfigDict

from data.batches import pipeline
from data.errors import DataError
from data.storage.path import Path, PathLike
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.config.schema import parse_profile
from hvp_jax.evaluation import report
from hvp_jax.models import flops
from hvp_jax.monitoring.metrics_logger import MetricsLogger
from hvp_jax.monitoring.profiler import StepProfiler
from hvp_jax.monitoring.throughput import ThroughputMeter, release_freed_memory
from hvp_jax.monitoring.watchdog import WAITING_FOR_DEVICES, Watchdog
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.processes import barrier, is_primary, process_index_and_count
from hvp_jax.training.run_history import recorded
from hvp_jax.training.step_spec import StepSpec
from hvp_jax.training.train_state import TrainState
from hvp_jax.training.train_step import train_step


class SignalHandler:
    """Records the first SIGTERM or SIGINT in `name`; a second one has its usual effect."""

    name: str | None = None

    def __enter__(self) -> "SignalHandler":
        self.name = None
        self._before = {s: signal.signal(s, self._record) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()


class TrainLoop:
    """Runs the steps after step `at`, up to the end of the run. To be used in `with`.

    `with` opens the metrics logger, profiler and watchdog, and handles stop signals.
    `num_frames` is the padded number of frames of a clip.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: PathLike,
        at: int,
        *,
        partitioner: Partitioner,
        spec: StepSpec,
        batches: Iterator,
        checkpointer: Checkpointer,
        num_frames: int,
    ):
        self.config, self.workdir, self._at = config, Path(workdir), at
        self.partitioner, self.spec = partitioner, spec
        self.batches, self.checkpointer, self._num_frames = batches, checkpointer, num_frames

    def __enter__(self) -> "TrainLoop":
        config, batch_size = self.config, self.config.train.batch_size
        self.flops_per_step = flops.training_step(
            self.spec.model, batch_size, self._num_frames, config.data.max_words
        )
        self.throughput = ThroughputMeter(
            self._at,
            batch_size,
            self.flops_per_step,
            self.partitioner.devices,
            precision=config.precision,
        )
        profiled = parse_profile(config.profile) if is_primary() else None
        watchdog = Watchdog(
            self.workdir / "alive", config.train.stall_timeout, *process_index_and_count()
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(recorded(self.workdir, self._at, writes=is_primary()))
            logger = MetricsLogger(self.workdir, config.train.steps, self._at, writes=is_primary())
            self.metrics = stack.enter_context(logger)
            self.profiler = stack.enter_context(StepProfiler(self.workdir / "profile", profiled))
            self.watchdog = stack.enter_context(watchdog)
            self.signals = stack.enter_context(SignalHandler())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(
        self, state: TrainState, validate: Callable[[Any], dict] | None
    ) -> tuple[TrainState, int, bool]:
        """Steps until the end of the run or a stop signal.

        `validate` maps parameters to metrics; None if there are no validation clips. Returns the
        state, its step, and whether a signal stopped the run. Raises DataError if the loss was not
        finite for too many steps in a row.
        """
        at, train, total = self._at, self.config.train, self.config.train.steps
        step = self.partitioner.compile_train_step(
            functools.partial(train_step, spec=self.spec), state
        )
        batches = pipeline.uninterrupted(self.batches)
        self._skipped, self._in_a_row, self._stopped = int(state.skipped), 0, False
        first = saved = at
        pending: tuple[int, dict] | None = None  # the last step and its metrics, not yet fetched
        while at < total and not self._stopped:
            self.watchdog.heartbeat(at, "reading a batch")
            with self.throughput.waiting():
                batch = next(batches)
            self.profiler.step(at + 1, pending)
            batch = self.partitioner.shard_batch(batch, bool(self.signals.name))
            if at == first:
                self.watchdog.heartbeat(at, "compiling")
                with self.throughput.paused():
                    step.lower(state, batch).compile()
                    release_freed_memory()
                    # Processes compile at different speeds; collectives of the step would time out.
                    barrier("every process has compiled")
            self.watchdog.heartbeat(at, WAITING_FOR_DEVICES)
            # The step must not transfer anything implicitly: the batch is on the devices already.
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, batch)
            at += 1
            self._log_metrics(pending)
            pending = (at, metrics)
            evaluates = validate is not None and (at % train.eval_every == 0 or at == total)
            if evaluates or at % train.checkpoint_every == 0 or at == total:
                self._log_metrics(pending)
                pending = None
                self._evaluate_and_save(state, at, validate if evaluates else None)
                saved = at
            # A single process need not wait for its stop flag to come back with the metrics.
            self._stopped |= bool(self.signals.name) and jax.process_count() == 1
        self._log_metrics(pending)
        if at != saved:
            self._evaluate_and_save(state, at, None)
        return state, at, self._stopped

    def _log_metrics(self, pending: tuple[int, dict] | None) -> None:
        """Fetches the metrics of a step, logs them if it is time, and stops the run if need be."""
        if not pending:
            return
        at, arrays = pending
        metrics = {name: x.item() for name, x in jax.device_get(arrays).items()}
        self._stopped |= bool(metrics.pop("stop"))
        train, optimizer = self.config.train, self.config.optimizer
        factor = metrics.pop("lr_factor")
        if at % train.log_every == 0 or at == train.steps:
            row = metrics | {
                "learning_rate": optimizer.learning_rate * factor,
                "clip_learning_rate": optimizer.clip_learning_rate * factor,
                "temperature": math.exp(-metrics["log_scale"]),
            }
            self.metrics.write(at, row | {"measured": self.throughput.measure(at)})
            self.metrics.progress(at, metrics["loss"])
        self._in_a_row = self._in_a_row + 1 if metrics["skipped"] > self._skipped else 0
        self._skipped = metrics["skipped"]
        if self._in_a_row >= train.max_skipped_updates:
            raise DataError(
                f"the loss or its gradient was not finite for {self._in_a_row} steps in a row, up "
                f"to step {at}: lower optimizer.learning_rate or optimizer.clip_learning_rate, or "
                "check the data (train.max_skipped_updates sets how many in a row are allowed)"
            )

    def _evaluate_and_save(
        self, state: TrainState, at: int, validate: Callable[[Any], dict] | None
    ) -> None:
        """Evaluates, if there is `validate`, then saves."""
        scores = None
        with self.throughput.paused(state), self.metrics.paused():
            if validate:
                self.watchdog.heartbeat(at, "evaluating")
                scores = validate(self.partitioner.replicate_params(state.params))
                self.metrics.write(at, scores)
                self.metrics.print(f"step {at}  {scores['split']}  {report.line(scores)}")
            self.watchdog.heartbeat(at, "saving")
            self.metrics.flush()  # the rows up to a checkpoint are there whenever it is
            items = self.partitioner.to_global(state).items()
            self.checkpointer.save(at, items, self.batches, scores)

"""Checkpoints of a run, managed by Orbax: the newest, the best by validation, and periodic ones.

A step is written completely or not at all. Its items are the parameters; the rest of the state,
separate so that scoring need not read the optimiser's moments; the state of the data iterator;
and a manifest (`manifest.py`) with checksums of all of them.
"""

import contextlib
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grain
import grain.checkpoint
import jax
import orbax.checkpoint as ocp

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path, absolute
from hvp_jax.checkpoints import bucket, disk_space, event_loop, manifest, retention
from hvp_jax.checkpoints.manifest import CorruptCheckpoint
from hvp_jax.checkpoints.restore import fail_together, read_arrays
from hvp_jax.parallel import processes

log = logging.getLogger(__name__)
# Orbax logs background errors with a traceback and raises them later; we report the latter.
logging.getLogger("absl").addFilter(lambda r: not (r.exc_info and "orbax" in r.pathname))


class Checkpointer:
    """The folder `checkpoints` of a workdir; a context manager that waits for pending writes.

    It keeps the `max_to_keep` newest steps, the best one by the metric `select_by`, one of
    `config.schema.SELECT_BY` (empty: the run's own, recorded with its steps), and every step
    that is a multiple of `keep_period` (0: none). With several processes, all of them must create
    one and call its methods in the same order.
    """

    def __init__(self, workdir: Path, max_to_keep: int, keep_period: int = 0, select_by: str = ""):
        bucket.limit_retries()
        self.path = absolute(workdir) / "checkpoints"
        self._scores = retention.StepScores(self.path, select_by)
        self._pending: int | None = None  # the step that is being written
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=retention.preservation_policy(
                max_to_keep, keep_period, self._scores.best
            ),
            # Process 0 creates the folder and broadcasts the list of steps.
            create=True,
            single_host_load_and_broadcast=True,
            lightweight_initialize=True,  # metrics are in the manifests
        )
        self._exit_stack = contextlib.ExitStack()
        self._manager: ocp.CheckpointManager | None = None  # None: there is no folder yet
        if processes.broadcast_from_primary(self.path.is_dir()):
            self._open()

    def _open(self) -> ocp.CheckpointManager:
        self._manager = ocp.CheckpointManager(self.path, options=self._options)
        return self._manager

    def __enter__(self) -> "Checkpointer":
        self._exit_stack.enter_context(event_loop.await_pending_tasks())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._exit_stack:
            if not self._manager:
                return
            try:
                with disk_space.disk_space_guard(self.path, self._pending):
                    self._manager.close()
            except DataError as no_space:
                if error is None:
                    raise
                if not isinstance(error, DataError):  # else `error` already reports it
                    log.error("%s", no_space)

    def latest(self) -> int | None:
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        # Broadcast steps are NumPy integers, which JSON does not accept.
        return [int(step) for step in self._manager.all_steps()] if self._manager else []

    def select_step(self) -> dict[str, Any] | None:
        """The step to score with: the best by `select_by`, or the last if none has metrics.

        {"step", "chosen_on": the split or None, "chosen_by": the metric's name, and its value
        under that name}; None if there is no step.
        """
        if self._manager is None or self.latest() is None:
            return None
        self._wait(self._manager)
        return self._scores.select(self._steps())

    def save(
        self,
        step: int,
        items: dict[str, Any],
        batches: grain.DatasetIterator,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        """Writes a step in the background; `metrics` are those of a validation split, if any.

        `items` are the trees `params` and `rest` of a state.

        Raises DataError if there is no disk space for this step, or was none for the one before.
        """
        with disk_space.disk_space_guard(self.path, step):
            manager = self._manager or self._open()
        self._wait(manager)
        if step in self._steps():
            return
        scores = self._scores.add(step, metrics)
        recorded = manifest.build(items, scores, iterator=True)
        args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args["data"] = grain.checkpoint.CheckpointSave(manifest.IteratorState(batches))
        args[manifest.ITEM] = ocp.args.JsonSave(recorded)
        with disk_space.disk_space_guard(self.path, step):
            self._pending = step
            manager.save(step, args=ocp.args.Composite(**args))

    def _wait(self, manager: ocp.CheckpointManager) -> None:
        """Waits for the step that is being written."""
        with disk_space.disk_space_guard(self.path, self._pending):
            manager.wait_until_finished()
        self._pending = None

    def restore_latest(
        self, items: dict[str, Any], batches: grain.DatasetIterator, warn: Callable[[str], None]
    ) -> tuple[dict[str, Any], int] | None:
        """The items of the newest intact step, and that step; None if there is no step at all.

        Damaged steps are reported by `warn` and moved to `workdir/damaged`, so that the run can
        write them again. Raises DataError if no step is intact, and what `restore` raises for a
        step that does not fit.
        """
        if self._manager is None:
            return None
        disk_space.remove_partial_checkpoints(self.path)
        steps, damaged = sorted(self._steps()), []
        while steps:
            step = steps.pop()
            try:
                items = self.restore(step, items, batches)
            except CorruptCheckpoint as error:
                damaged.append(step)
                if not steps:
                    raise DataError(
                        f"{error}; no other step in {self.path} is intact: put a copy of one "
                        "there, or start again with another workdir"
                    ) from None
                warn(f"warning: {error}; trying step {steps[-1]} instead")
                continue
            if damaged:
                self._move_damaged(self._manager, damaged, warn)
            return items, step
        return None

    def _move_damaged(
        self, manager: ocp.CheckpointManager, steps: list[int], warn: Callable[[str], None]
    ) -> None:
        folder = self.path.parent / "damaged"
        if processes.is_primary():
            storage.make_folder(folder)
            for step in steps:
                name, count = str(step), 1
                while (folder / name).exists():
                    name, count = f"{step}.{count}", count + 1
                storage.move_tree(self.path / str(step), folder / name)
        warn(f"warning: the damaged steps {', '.join(map(str, steps))} are now in {folder}")
        processes.barrier("damaged steps are moved")
        manager.close()
        self._open()  # else Orbax would still list these steps and not write them again

    def restore(
        self, step: int, items: dict[str, Any], batches: grain.DatasetIterator
    ) -> dict[str, Any]:
        """The items of a step, sharded like `items`; restores the state of `batches` too.

        Raises CorruptCheckpoint, in all processes if in one; DataError if the checkpoint is of
        another model; UsageError if it is of another number of processes or has no optimizer.
        """
        folder = self.path / str(step)
        items = jax.tree.map(_abstract, items)
        recorded = fail_together(folder, lambda: manifest.read(folder))
        saved = recorded["arrays"] if recorded else [x for x in items if (folder / x).is_dir()]
        if "rest" not in saved:
            raise UsageError(
                f"{self.path.parent} holds weights but no optimizer state to resume from: start a "
                f"run from them with --config.model.weights={self.path.parent} and another workdir"
            )
        if recorded is None:
            raise UsageError(
                f"{folder} was written before checkpoints had checksums: start a run from it "
                f"with --config.model.weights={self.path.parent} and another workdir"
            )
        iterator_state = fail_together(
            folder, lambda: manifest.read_iterator_state(recorded, folder)
        )
        restored = read_arrays(folder, recorded, items)
        if iterator_state is not None:
            # An error here does not mean damage: the data set has changed since.
            batches.set_state(iterator_state)
            batches.start_prefetch()
        return restored

    def params(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """The parameters of a step, with the given shapes, as host arrays of the type on disk.

        Raises CorruptCheckpoint if they have changed, DataError if they are of another model.
        """
        folder = self.path / str(step)
        recorded = fail_together(folder, lambda: manifest.read(folder))
        like = manifest.empty_like(recorded, "params", shapes)
        return read_arrays(folder, recorded, {"params": like})["params"]


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

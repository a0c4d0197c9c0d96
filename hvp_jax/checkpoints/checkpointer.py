"""Checkpoints of a run, kept by Orbax: the newest, the best by validation, one every so often.

A step is one item whole or not at all: parameters apart from the rest of the state, so
that scoring need not read the optimiser's moments, the state of the data iterator, and a manifest
(`manifest.py`) with checksums of all of it.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import grain.checkpoint
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from data.errors import DataError, UsageError
from hvp_jax.checkpoints import disk_space, event_loop, manifest, retention
from hvp_jax.checkpoints.manifest import CorruptCheckpoint
from hvp_jax.checkpoints.restore import fail_together, read_arrays
from hvp_jax.parallel import processes

log = logging.getLogger(__name__)
# What Orbax logs of an error in the background comes to us as the error, which we tell.
logging.getLogger("absl").addFilter(lambda r: not (r.exc_info and "orbax" in r.pathname))


class Checkpointer:
    """The folder `checkpoints` of a workdir; to be used in `with`, which waits for writing.

    It keeps the `max_to_keep` newest steps, the best one by the metric `select_by`, one of
    `config.schema.SELECT_BY` (empty: the run's own, recorded with its steps), and every step
    that is a multiple of `keep_period` (0: none). With several processes, all must make one
    and call its methods in the same order.
    """

    def __init__(self, workdir: Path, max_to_keep: int, keep_period: int = 0, select_by: str = ""):
        self.path = Path(workdir).absolute() / "checkpoints"
        self._scores = retention.StepScores(self.path, select_by)
        self._written = None  # the step that is being written, until it is known to be whole
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=retention.preservation_policy(
                max_to_keep, keep_period, self._scores.best
            ),
            # Process 0 makes the folder and tells the others which steps are there.
            create=True,
            single_host_load_and_broadcast=True,
            lightweight_initialize=True,  # metrics are in the manifests
        )
        self._within, self._manager = contextlib.ExitStack(), None
        if processes.broadcast_from_primary(self.path.is_dir()):
            self._open()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self.path, options=self._options)

    def __enter__(self) -> "Checkpointer":
        self._within.enter_context(event_loop.await_pending_tasks())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        with self._within:
            if not self._manager:
                return
            try:
                with disk_space.disk_space_guard(self.path, self._written):
                    self._manager.close()
            except DataError as full:
                if error is None:
                    raise
                if not isinstance(error, DataError):  # else this has been told
                    log.error("%s", full)

    def latest(self) -> int | None:
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        # Broadcast steps are NumPy's, which JSON does not take.
        return [int(step) for step in self._manager.all_steps()] if self._manager else []

    def select_step(self) -> dict | None:
        """The step to score with: the best by `select_by`, or the last where none has any figures.

        {"step", "chosen_on": the split or None, "chosen_by": the figure's name, and the
        figure under that name}; None where there is no step.
        """
        if self.latest() is None:
            return None
        self._finish()
        return self._scores.choice(self._steps())

    def save(self, step: int, items: dict, batches, figures: dict | None = None) -> None:
        """Writes a step in the background; `figures` are of their `split`, if evaluated.

        `items` are the trees `params` and `rest` of a state.

        Raises DataError where there is no room for it, or was none for the step before.
        """
        with disk_space.disk_space_guard(self.path, step):
            if self._manager is None:
                self._open()
        self._finish()
        if step in self._steps():
            return
        scores = self._scores.add(step, figures)
        recorded = manifest.build(items, scores, iterator=True)
        saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        saves["data"] = grain.checkpoint.CheckpointSave(manifest.IteratorState(batches))
        saves[manifest.ITEM] = ocp.args.JsonSave(recorded)
        with disk_space.disk_space_guard(self.path, step):
            self._written = step
            self._manager.save(step, args=ocp.args.Composite(**saves))

    def _finish(self) -> None:
        with disk_space.disk_space_guard(self.path, self._written):
            self._manager.wait_until_finished()
        self._written = None

    def restore_latest(
        self, items: dict, batches, say: Callable[[str], None]
    ) -> tuple[dict, int] | None:
        """The newest items that are whole, and their step; None where there is no step at all.

        A step that is not whole is told of by `say` and set aside in `workdir/damaged`, where
        it is in nobody's way once the run comes to that step again. Raises DataError if no
        step is whole, and what `restore` raises of one that does not fit.
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
                        f"{error}; no other step in {self.path} is whole: put a copy of one "
                        "there, or begin again with another workdir"
                    ) from None
                say(f"warning: {error}; trying step {steps[-1]} instead")
                continue
            if damaged:
                self._set_aside(damaged, say)
            return items, step
        return None

    def _set_aside(self, steps: list[int], say: Callable[[str], None]) -> None:
        folder = self.path.parent / "damaged"
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            for step in steps:
                name, more = str(step), 1
                while (folder / name).exists():
                    name, more = f"{step}.{more}", more + 1
                (self.path / str(step)).rename(folder / name)
        say(f"warning: the damaged steps {', '.join(map(str, steps))} are now in {folder}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged steps are set aside")
        self._manager.close()
        self._open()  # else Orbax would think them there and not write them again

    def restore(self, step: int, items: dict, batches) -> dict:
        """The items of a step, placed like `items`; moves `batches` to where they were then.

        Raises CorruptCheckpoint, in all processes if in one; DataError if it is a checkpoint of
        another model, UsageError if of another number of processes or without an optimizer.
        """
        folder = self.path / str(step)
        items = jax.tree.map(_abstract, items)
        recorded = fail_together(folder, lambda: manifest.read(folder))
        there = recorded["arrays"] if recorded else [x for x in items if (folder / x).is_dir()]
        if "rest" not in there:
            raise UsageError(
                f"{self.path.parent} holds weights but no optimizer to go on with: begin a run "
                f"from them with --config.model.weights={self.path.parent} and another workdir"
            )
        if not recorded:
            raise UsageError(
                f"{folder} was written before checkpoints had checksums: begin a run from it "
                f"with --config.model.weights={self.path.parent} and another workdir"
            )
        place = fail_together(folder, lambda: manifest.read_iterator_state(recorded, folder))
        found = read_arrays(folder, recorded, items)
        if place is not None:
            # An error here is no damage: the data are not those of then.
            batches.set_state(place)
            batches.start_prefetch()
        return found

    def params(self, step: int, shapes: dict) -> dict:
        """The parameters of a step, of the shapes given, as host arrays.

        Raises CorruptCheckpoint if they are not what was written, DataError if of another model.
        """
        folder = self.path / str(step)
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        recorded = fail_together(folder, lambda: manifest.read(folder))
        return read_arrays(folder, recorded, {"params": like})["params"]


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

"""Checkpoints of a run, kept by Orbax: the newest ones, and the best by validation.

A step is one item whole or not at all: parameters apart from the rest of the state, so
that scoring need not read the optimiser's moments, and the place in the data.
"""

import logging
import math
from pathlib import Path

import grain.checkpoint
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from hvp_jax.errors import BadData, BadUse
from hvp_jax.step import State

# Orbax warns of every step that has no figures; only some are meant to have any.
logging.getLogger("absl").addFilter(lambda record: "tracked_metric" not in record.msg)

SELECT = "rsum"  # R@1 + R@5 + R@10 of both directions, the field's single figure
OPTIMISTIC = (
    "train.choose_on=test: the checkpoint is the best of several on the test split itself, so "
    "the figures are optimistic"
)


def select_by(figures: dict) -> dict[str, float]:
    """The figure that the best checkpoint is chosen by, of a validation split's figures."""
    both = (figures["text_to_video"], figures["video_to_text"])
    return {SELECT: sum(way[k] for way in both for k in ("R@1", "R@5", "R@10"))}


class Checkpoints:
    """The folder `checkpoints` of a workdir; to be used in `with`, which waits for writing."""

    def __init__(self, workdir: Path, keep: int):
        self.path = Path(workdir).absolute() / "checkpoints"
        newest = policy.LatestN(keep)
        best = policy.BestN(
            get_metric_fn=lambda m: m[SELECT], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m[SELECT],
            preservation_policy=policy.AnyPreservationPolicy([newest, best]),
            create=False,
        )
        self._options, self._manager = options, None
        if self.path.is_dir():
            self._open()

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.path, options=self._options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        if self._manager:
            self._manager.close()

    def latest(self) -> int | None:
        return self._manager.latest_step() if self._manager else None

    def chosen(self) -> dict | None:
        """The step to score with: the best by `save`'s figures, or the last where none has any."""
        if self.latest() is None:
            return None
        self._manager.wait_until_finished()
        scored = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scored = {step: m[SELECT] for step, m in scored.items() if m and SELECT in m}
        if not scored:
            return {"step": self.latest(), "chosen_on": None}
        # The latest of equals is the one that is always kept.
        step = max(scored, key=lambda s: (scored[s], s))
        split = self._manager.metrics(step).get("split", "val")
        about = {"step": step, "chosen_on": split, SELECT: scored[step]}
        return about | ({"warning": OPTIMISTIC} if split == "test" else {})

    def save(self, step: int, state: State, batches, figures: dict | None = None) -> None:
        """Writes a step in the background; `figures` are of their `split`, if evaluated."""
        if self._manager is None:
            self._open()
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(_rest(state)),
                data=grain.checkpoint.CheckpointSave(batches),
            ),
            metrics=select_by(figures) | {"split": figures["split"]} if figures else None,
        )

    def save_ported(self, step: int, params: dict, rest: State | None = None) -> None:
        """Writes parameters from elsewhere, perhaps CLIP's alone, and the moments if there are.

        They have no place in the data: a run that goes on from them begins an epoch. The
        leaves are moved out of `params`, so that no more than one is in memory twice.
        """
        items = {"params": params} | ({} if rest is None else {"rest": _rest(rest)})
        cpu = jax.local_devices(backend="cpu")[0]
        largest = max(x.nbytes for x in jax.tree.leaves(items))
        handlers = {}
        for name, tree in items.items():
            # Orbax keeps a NumPy array twice while it writes, and the parts it compresses: here
            # no more than a gigabyte of them, or the largest array, which must fit.
            limit = max(1, math.ceil(largest / 1e9))
            handlers[name] = ocp.StandardCheckpointHandler(save_concurrent_gb=limit)
            items[name] = _move(tree, cpu)
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        with ocp.CheckpointManager(self.path, options=options, item_handlers=handlers) as manager:
            saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            manager.save(step, args=ocp.args.Composite(**saves))

    def restore(self, step: int, state: State, batches) -> State:
        """The state of a step, placed like `state`; moves `batches` to where they were then."""
        like = jax.tree.map(_abstract, state)
        items = {
            "params": ocp.args.StandardRestore(like.params),
            "rest": ocp.args.StandardRestore(_rest(like)),
            "data": grain.checkpoint.CheckpointRestore(batches),
        }
        there = {item for item in items if (self.path / str(step) / item).is_dir()}
        if "rest" not in there:
            raise BadUse(
                f"{self.path.parent} holds weights but no optimizer to go on with: begin a run "
                f"from them with --config.model.weights={self.path.parent} and another workdir"
            )
        found = self._manager.restore(
            step, args=ocp.args.Composite(**{item: items[item] for item in there})
        )
        return State(params=found.params, **found.rest)

    def params(self, step: int, shapes: dict) -> dict:
        """The parameters of a step, of the shapes given, as host arrays."""
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        try:
            return self._manager.restore(
                step, args=ocp.args.Composite(params=ocp.args.StandardRestore(like))
            ).params
        except ValueError as error:
            raise BadData(
                f"{self.path}: step {step} is not of the model that the config describes ({error})"
            ) from error


def _move(tree, device: jax.Device):
    """A tree's arrays on a device, each let go where it was once it is there."""
    if not isinstance(tree, dict):
        return jax.tree.map(lambda x: jax.device_put(x, device), tree)
    return {
        key: _move(tree.pop(key), device)
        if isinstance(tree[key], dict)
        else jax.block_until_ready(jax.device_put(tree.pop(key), device))
        for key in list(tree)
    }


def _rest(state: State) -> dict:
    return {"step": state.step, "skipped": state.skipped, "opt_state": state.opt_state}


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

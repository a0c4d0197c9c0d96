"""Writes converted weights as a checkpoint, using little more memory than they take."""

import math
from typing import Any

import jax
import orbax.checkpoint as ocp

from data.storage.path import Path, absolute
from hvp_jax.checkpoints import bucket, disk_space, manifest


def save_weights(
    workdir: Path, step: int, params: dict[str, Any], rest: dict[str, Any] | None = None
) -> None:
    """Writes converted parameters, perhaps CLIP's alone, and the rest of a state if given.

    There is no iterator state: a run that resumes from this checkpoint begins an epoch. The
    leaves are moved out of `params`, so that at most one is in memory twice.
    """
    bucket.limit_retries()
    path = absolute(workdir) / "checkpoints"
    items = {"params": params} | ({} if rest is None else {"rest": rest})
    cpu = jax.local_devices(backend="cpu")[0]
    largest = max(x.nbytes for x in jax.tree.leaves(items))
    handlers: dict[str, ocp.CheckpointHandler] = {manifest.ITEM: ocp.JsonCheckpointHandler()}
    for name, tree in items.items():
        # While Orbax writes a NumPy array it holds a second copy and the compressed chunks.
        # The limit keeps them to a gigabyte, or to the largest array, which must fit.
        limit = max(1, math.ceil(largest / 1e9))
        handlers[name] = ocp.StandardCheckpointHandler(save_concurrent_gb=limit)
        items[name] = _move(tree, cpu)
    args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args[manifest.ITEM] = ocp.args.JsonSave(manifest.build(items, None, iterator=False))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with (
        disk_space.disk_space_guard(path, step),
        ocp.CheckpointManager(path, options=options, item_handlers=handlers) as manager,
    ):
        manager.save(step, args=ocp.args.Composite(**args))


def _move(tree: Any, device: jax.Device) -> Any:
    """A tree's arrays on a device; each is released from its dict once it has been copied."""
    if not isinstance(tree, dict):
        return jax.tree.map(lambda x: jax.device_put(x, device), tree)
    return {
        key: _move(tree.pop(key), device)
        if isinstance(tree[key], dict)
        else jax.block_until_ready(jax.device_put(tree.pop(key), device))
        for key in list(tree)
    }

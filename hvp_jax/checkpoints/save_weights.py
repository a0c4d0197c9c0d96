"""Writes weights of elsewhere as a checkpoint, in little more memory than they take."""

import math
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from hvp_jax.checkpoints import disk_space, manifest


def save_weights(workdir: Path, step: int, params: dict, rest: dict | None = None) -> None:
    """Writes parameters from elsewhere, perhaps CLIP's alone, and the rest of a state if given.

    They have no place in the data: a run that goes on from them begins an epoch. The
    leaves are moved out of `params`, so that no more than one is in memory twice.
    """
    path = Path(workdir).absolute() / "checkpoints"
    items = {"params": params} | ({} if rest is None else {"rest": rest})
    cpu = jax.local_devices(backend="cpu")[0]
    largest = max(x.nbytes for x in jax.tree.leaves(items))
    handlers = {manifest.ITEM: ocp.JsonCheckpointHandler()}
    for name, tree in items.items():
        # Orbax keeps a NumPy array twice while it writes, and the parts it compresses: here
        # no more than a gigabyte of them, or the largest array, which must fit.
        limit = max(1, math.ceil(largest / 1e9))
        handlers[name] = ocp.StandardCheckpointHandler(save_concurrent_gb=limit)
        items[name] = _move(tree, cpu)
    saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    saves[manifest.ITEM] = ocp.args.JsonSave(manifest.build(items, None, iterator=False))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with (
        disk_space.disk_space_guard(path, step),
        ocp.CheckpointManager(path, options=options, item_handlers=handlers) as manager,
    ):
        manager.save(step, args=ocp.args.Composite(**saves))


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

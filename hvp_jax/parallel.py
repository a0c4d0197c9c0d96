"""How a function of (state, batch) is laid over devices. Nothing else knows.

Both ways compute the same numbers: `pmap`, and `jit` of `shard_map` on a mesh.
Batches are host arrays [B, ...] of this process; states are whole on every device.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hvp_jax.errors import BadUse

AXIS = "batch"


class Layout:
    """The devices of a run and the way steps are laid over them."""

    def __init__(self, kind: str, devices: list | None = None):
        self.kind = kind
        self.devices = devices or jax.devices()
        self.mesh = Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    def check_batch(self, size: int, key: str) -> None:
        """A batch must divide over the devices; BadUse names the key."""
        if size % len(self.devices):
            raise BadUse(
                f"{key}={size} does not divide over {len(self.devices)} devices; "
                f"use a multiple of {len(self.devices)}"
            )

    def place(self, tree):
        """Puts a tree whole on every device, as every step wants and returns it."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def lay(self, step: Callable, donate: bool) -> Callable:
        """`step(state, batch, axis=...)` -> a compiled function of (state, host batch).

        With `donate` it is a training step: what comes back is the same on all devices,
        and the state's memory is used again. Without, it maps examples to examples.
        """
        if self.kind == "pmap":
            return self._pmap(step, donate)
        return self._shard_map(step, donate)

    def _pmap(self, step: Callable, donate: bool) -> Callable:
        count = len(self.devices)
        mapped = jax.pmap(
            functools.partial(step, axis=AXIS),
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None if donate else 0,
            donate_argnums=(0,) if donate else (),
            devices=self.devices,
        )

        def run(state, batch):
            split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
            out = mapped(state, split)
            if donate:
                return out
            return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), out)

        return run

    def _shard_map(self, step: Callable, donate: bool) -> Callable:
        whole, split = PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.jit(
            jax.shard_map(
                functools.partial(step, axis=AXIS),
                mesh=self.mesh,
                in_specs=(whole, split),
                out_specs=whole if donate else split,
                # The step gathers and averages by itself, as under pmap.
                check_vma=False,
            ),
            donate_argnums=(0,) if donate else (),
        )

        def run(state, batch):
            batch = jax.device_put(batch, NamedSharding(self.mesh, split))
            out = mapped(state, batch)
            return out if donate else jax.tree.map(np.asarray, out)

        return run

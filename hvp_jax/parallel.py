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
        self.whole = NamedSharding(self.mesh, PartitionSpec())

    def check_batch(self, size: int, key: str) -> None:
        """A batch must divide over the devices; BadUse names the key."""
        if size % len(self.devices):
            raise BadUse(
                f"{key}={size} does not divide over {len(self.devices)} devices; "
                f"use a multiple of {len(self.devices)}"
            )

    def place(self, tree):
        """A copy of a tree, whole on every device, as every step wants and returns it."""
        # A copy, since a training step gives the memory of its state away.
        return jax.device_put(tree, self.whole, may_alias=False)

    def train(self, step: Callable) -> Callable:
        """`step(state, batch, axis=)` -> a compiled function of (state, host batch).

        What comes back is whole on all devices; the memory of the state is used again.
        """
        return self._lay(step, PartitionSpec(), donate=(0,))

    def map(self, function: Callable) -> Callable:
        """`function(params, batch)`, example by example -> the same, compiled, to host arrays."""

        def ignore_axis(params, batch, axis):
            del axis
            return function(params, batch)

        laid = self._lay(ignore_axis, PartitionSpec(AXIS), donate=())
        return lambda params, batch: jax.tree.map(np.asarray, laid(params, batch))

    def _lay(self, step: Callable, out: PartitionSpec, donate: tuple[int, ...]) -> Callable:
        step = functools.partial(step, axis=AXIS)
        if self.kind == "pmap":
            return self._pmap(step, out, donate)
        split = PartitionSpec(AXIS)
        mapped = jax.jit(
            jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), split),
                out_specs=out,
                # The step gathers and averages by itself, as it must under pmap.
                check_vma=False,
            ),
            donate_argnums=donate,
        )
        return lambda state, batch: mapped(
            state, jax.device_put(batch, NamedSharding(self.mesh, split))
        )

    def _pmap(self, step: Callable, out: PartitionSpec, donate: tuple[int, ...]) -> Callable:
        mapped = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=0 if out == PartitionSpec(AXIS) else None,
            donate_argnums=donate,
            devices=self.devices,
        )
        count = len(self.devices)

        def run(state, batch):
            # pmap wants the devices as an axis of their own, and gives it back.
            result = mapped(
                state, jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
            )
            if out == PartitionSpec():
                return result
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)

        return run

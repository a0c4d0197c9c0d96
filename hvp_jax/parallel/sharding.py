"""Which shard of an array a device holds, and the collectives of a training step.

One rule, by shape alone, holds for parameters and the optimiser's moments: a large array is
sharded along its longest axis that the number of devices divides; any other array is replicated.
Of several slices of a TPU, each holds all shards: arrays are gathered from the devices of one
slice, whose links are fast, and between slices go the means of gradients, the features of the
texts and the sums of the loss.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MIN_SHARDED_SIZE = 2**14  # elements; gathering a smaller array costs more than it saves


def merge_channels(batch: Any) -> Any:
    """Frames [B, T, height, width, 3] of a batch -> [B, T, height, 3 width]; a view, on the host.

    A TPU's memory pads the last axis of an array to 128 elements, so that frames with an axis of 3
    channels would take 42 times their size, and as much time to read.
    """
    return jax.tree.map(lambda x: x.reshape(*x.shape[:3], -1) if x.ndim == 5 else x, batch)


def shard_axis(shape: tuple[int, ...], devices: int) -> int:
    """The axis along which an array is sharded over `devices`; -1 if it is replicated."""
    if devices == 1 or math.prod(shape) < MIN_SHARDED_SIZE:
        return -1
    longest = max(((n, -axis) for axis, n in enumerate(shape) if n % devices == 0), default=None)
    return -1 if longest is None else -longest[1]


class Collectives(NamedTuple):
    """What a step does across the devices of mesh axis `axis`; without an axis, nothing.

    `axis` may be several axes, the last of which has the devices of one slice. `shard_axes` is a
    tree like the parameters: the axis along which each is sharded, or -1. None if all are
    replicated.
    """

    axis: str | tuple[str, ...] | None = None
    shard_axes: dict | None = None

    @property
    def slice_axis(self) -> str | None:
        """The mesh axis over whose devices arrays are sharded: those of one slice."""
        return self.axis[-1] if isinstance(self.axis, tuple) else self.axis

    def all_gather_params(self, params: optax.Params) -> optax.Params:
        """A device's shards -> complete parameters. Their gradient is sharded, and summed."""
        return params if self.shard_axes is None else self.all_gather(params, self.shard_axes)

    def all_gather(self, shards: Any, axes: Any) -> Any:
        """A device's shards -> complete arrays; `axes` is a tree like `shard_axes`."""
        return jax.tree.map(
            lambda x, axis: (
                x if axis < 0 else jax.lax.all_gather(x, self.slice_axis, axis=axis, tiled=True)
            ),
            shards,
            axes,
        )

    def own_shards(self, arrays: Any, axes: Any) -> Any:
        """The inverse of `all_gather`."""

        def own(x, axis):
            if axis < 0:
                return x
            size = x.shape[axis] // jax.lax.axis_size(self.slice_axis)
            first = jax.lax.axis_index(self.slice_axis) * size
            return jax.lax.dynamic_slice_in_dim(x, first, size, axis)

        return jax.tree.map(own, arrays, axes)

    def mean_gradients(self, grads: optax.Params) -> optax.Params:
        """The gradients of all devices -> their mean, of the shards that this device holds."""
        if self.axis is None:
            return grads
        if self.shard_axes is None:
            return jax.lax.pmean(grads, self.axis)
        devices = jax.lax.axis_size(self.axis)

        def mean(g, axis):
            if axis < 0:
                return jax.lax.pmean(g, self.axis)
            # The backward pass of `all_gather_params` has summed it over the slice already.
            if isinstance(self.axis, tuple):
                g = jax.lax.psum(g, self.axis[:-1])
            return g / devices

        return jax.tree.map(mean, grads, self.shard_axes)

    def global_norm(self, grads: optax.Params) -> jax.Array:
        """The global norm of gradients of which this device holds its shards."""
        if self.shard_axes is None:
            return optax.tree.norm(grads)
        squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), grads)
        pairs = list(zip(jax.tree.leaves(squares), jax.tree.leaves(self.shard_axes), strict=True))
        sharded = sum(square for square, axis in pairs if axis >= 0)
        replicated = sum(square for square, axis in pairs if axis < 0)
        return jnp.sqrt(jax.lax.psum(sharded, self.slice_axis) + replicated)

    def any(self, flags: jax.Array) -> jax.Array:
        """Whether a flag is true on any device, as int32."""
        flag = jnp.any(flags).astype(jnp.int32)
        return flag if self.axis is None else jax.lax.pmax(flag, self.axis)


SINGLE_DEVICE = Collectives()

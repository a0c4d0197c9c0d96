"""Which part of an array a device holds, and what the parts of all devices have in common.

One rule decides for parameters and for the optimiser's moments alike, by the shape alone:
an array of some size is cut along its longest axis that divides over the devices, the rest
is whole everywhere.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

MIN_SHARDED_SIZE = 2**14  # numbers in an array below which a part is not worth the sending


def shard_axis(shape: tuple[int, ...], devices: int) -> int:
    """The axis along which an array is cut over `devices`, or -1 if each holds it whole."""
    if devices == 1 or math.prod(shape) < MIN_SHARDED_SIZE:
        return -1
    longest = max(((n, -axis) for axis, n in enumerate(shape) if n % devices == 0), default=None)
    return -1 if longest is None else -longest[1]


class Collectives(NamedTuple):
    """What a step does across the devices of the axis it runs on; without an axis, nothing.

    `shard_axes`: the parameters' tree with, for each array, the axis along which it is cut, or -1.
    """

    axis: str | None = None
    shard_axes: dict | None = None

    def all_gather_params(self, params: optax.Params) -> optax.Params:
        """Whole parameters of a device's parts. The gradient comes back cut, and summed."""
        if self.shard_axes is None:
            return params
        return jax.tree.map(
            lambda x, at: x if at < 0 else jax.lax.all_gather(x, self.axis, axis=at, tiled=True),
            params,
            self.shard_axes,
        )

    def mean_gradients(self, grads: optax.Params) -> optax.Params:
        """The devices' gradients -> their mean, of the parts that this device holds."""
        if self.axis is None:
            return grads
        if self.shard_axes is None:
            return jax.lax.pmean(grads, self.axis)
        devices = jax.lax.axis_size(self.axis)
        return jax.tree.map(
            lambda g, at: jax.lax.pmean(g, self.axis) if at < 0 else g / devices,
            grads,
            self.shard_axes,
        )

    def global_norm(self, grads: optax.Params) -> jax.Array:
        """The global norm of gradients of which this device holds its parts."""
        if self.shard_axes is None:
            return optax.tree.norm(grads)
        squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), grads)
        pairs = list(zip(jax.tree.leaves(squares), jax.tree.leaves(self.shard_axes), strict=True))
        parts = sum(square for square, at in pairs if at >= 0)
        return jnp.sqrt(jax.lax.psum(parts, self.axis) + sum(s for s, at in pairs if at < 0))

    def any(self, flags: jax.Array) -> jax.Array:
        """Whether a flag is true on any device; int32."""
        found = jnp.any(flags).astype(jnp.int32)
        return found if self.axis is None else jax.lax.pmax(found, self.axis)

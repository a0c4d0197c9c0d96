"""Matrix products inside kernels."""

import jax
import jax.numpy as jnp


def dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """Product of two matrices, contracted over the axes given; float32."""
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)

"""Factors of the learning rates: a linear warm-up, then one of several courses (section 4.1)."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Steps = Int[Array | np.ndarray, "..."]


def warmup_steps(schedule_steps: int, warmup_fraction: float) -> int:
    """The number of updates that are warm-up: those with step / schedule_steps < warmup_fraction.

    Computed in Python's float64, as in the original. A compiled comparison of floats would decide
    otherwise for one update in a fifth of all lengths: XLA multiplies by 1 / schedule_steps.
    """
    least = max(0, int(warmup_fraction * schedule_steps) - 1)
    steps = next(i for i in itertools.count(least) if i / schedule_steps >= warmup_fraction)
    return min(steps, 2**31 - 1)  # steps are counted in int32


def _after_warmup(
    step: Steps, falling: Float[Array, "..."], schedule_steps: int, warmup_fraction: float
) -> Float[Array, "..."]:
    rising = jnp.asarray(step).astype(float) / (schedule_steps * warmup_fraction or 1)
    return jnp.where(step < warmup_steps(schedule_steps, warmup_fraction), rising, falling)


def warmup_cosine(step: Steps, schedule_steps: int, warmup_fraction: float) -> Float[Array, "..."]:
    """Number of updates done -> factor of the learning rate of the next one (section 4.1).

    With x = step / schedule_steps it is x / warmup_fraction during the warm-up, then
    (1 + cos(pi x)) / 2. It is float64 if JAX has float64 enabled, otherwise float32.
    """
    steps = jnp.asarray(step).astype(float)
    # The same as (1 + cos(pi x)) / 2, without its cancellation near the end of the schedule.
    falling = jnp.square(jnp.sin(jnp.pi / 2 * (schedule_steps - steps) / schedule_steps))
    return _after_warmup(step, falling, schedule_steps, warmup_fraction)


def warmup_linear(step: Steps, schedule_steps: int, warmup_fraction: float) -> Float[Array, "..."]:
    """As `warmup_cosine`, with (1 - x) / (1 - warmup_fraction), or 0, after the warm-up."""
    steps = jnp.asarray(step).astype(float)
    falling = (schedule_steps - steps) / (schedule_steps * (1 - warmup_fraction))
    return _after_warmup(step, jnp.maximum(falling, 0), schedule_steps, warmup_fraction)


def warmup_constant(
    step: Steps, schedule_steps: int, warmup_fraction: float
) -> Float[Array, "..."]:
    """As `warmup_cosine`, with 1 after the warm-up."""
    ones = jnp.ones_like(jnp.asarray(step).astype(float))
    return _after_warmup(step, ones, schedule_steps, warmup_fraction)


SCHEDULES: dict[str, Callable[[Steps, int, float], Float[Array, "..."]]] = {
    "warmup_cosine": warmup_cosine,
    "warmup_linear": warmup_linear,
    "warmup_constant": warmup_constant,
}

# What the learning rate does in the updates after the end of a schedule; "": nothing new.
AFTER_THE_END = {
    "warmup_cosine": "as in the original, the learning rate rises again after it",
    "warmup_linear": "the learning rate is 0 after it",
    "warmup_constant": "",
}

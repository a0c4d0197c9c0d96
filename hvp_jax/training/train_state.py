"""The state of training: new, or imported from a run in PyTorch."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from hvp_jax.training.optimization.optimizer import Optimizer, make_optimizer


class TrainState(NamedTuple):
    step: Int[Array, ""]  # batches seen
    skipped: Int[Array, ""]  # how many of them had a loss or gradient that was not finite
    params: optax.Params
    opt_state: optax.OptState

    def items(self) -> dict:
        """The two items of a checkpoint: the parameters, and the rest of the state."""
        rest = {"step": self.step, "skipped": self.skipped, "opt_state": self.opt_state}
        return {"params": self.params, "rest": rest}

    @classmethod
    def from_items(cls, items: dict) -> "TrainState":
        return cls(params=items["params"], **items["rest"])


def create_train_state(
    params: optax.Params, optimizer: Optimizer | optax.GradientTransformation
) -> TrainState:
    # Two arrays, not one used twice: a buffer can be donated only once.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, skipped, params, optimizer.init(params))


def imported_train_state(
    params: optax.Params, first_moments: dict, second_moments: dict, steps: int
) -> TrainState:
    """The state whose next update is the one that PyTorch would make.

    The moments are those after `steps` updates, as trees like the parameters.
    """
    # The state does not depend on the learning rates or the schedule.
    state = create_train_state(params, make_optimizer(0.0, 0.0, 1))
    count = jnp.asarray(steps, jnp.int32)
    opt_state = optax.tree.set(state.opt_state, mu=first_moments, nu=second_moments, count=count)
    return state._replace(step=count, opt_state=opt_state)

"""The state of training, new or with the moments of a run in PyTorch."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hvp_jax.training.optimizer import BertAdamState, make_optimizer


@flax.struct.dataclass
class TrainState:
    step: jax.Array  # batches seen
    skipped: jax.Array  # of them, how many had a loss that is not finite
    params: optax.Params
    opt_state: optax.OptState

    def items(self) -> dict:
        """The trees of arrays that a checkpoint holds, apart from each other."""
        rest = {"step": self.step, "skipped": self.skipped, "opt_state": self.opt_state}
        return {"params": self.params, "rest": rest}

    @classmethod
    def from_items(cls, items: dict) -> "TrainState":
        return cls(params=items["params"], **items["rest"])


def create_train_state(params: optax.Params, optimizer: optax.GradientTransformation) -> TrainState:
    # Two counters, not one twice: a donated buffer must be the only one of its kind.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, skipped, params, optimizer.init(params))


def imported_train_state(params: optax.Params, first: dict, second: dict, steps: int) -> TrainState:
    """The state of training from which the next update is the one PyTorch would make.

    `first` and `second` are the moments after `steps` updates, trees like the parameters.
    """
    # Rates and schedule are compiled into the step; the state has none of them.
    begin = create_train_state(params, make_optimizer(0.0, 0.0, 1))
    steps = jnp.asarray(steps, jnp.int32)
    parts = tuple(
        BertAdamState(first, second)
        if isinstance(part, BertAdamState)
        else part._replace(count=steps)
        if isinstance(part, optax.ScaleByScheduleState)
        else part
        for part in begin.opt_state
    )
    return begin.replace(step=steps, opt_state=parts)

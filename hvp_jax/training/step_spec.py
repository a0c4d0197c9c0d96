"""What a training step needs beside arrays."""

import flax.struct
import optax
from ml_collections import ConfigDict

from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.training.optimizer import make_optimizer


@flax.struct.dataclass
class StepSpec:
    """What a step needs beside arrays; hashable, so that it is compiled in."""

    model: HVPNet = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    seed: int = flax.struct.field(pytree_node=False, default=0)
    noise: bool = flax.struct.field(pytree_node=False, default=True)
    paired: bool = flax.struct.field(pytree_node=False, default=False)
    chunk_size: int = flax.struct.field(pytree_node=False, default=16)


def schedule_steps(config: ConfigDict, examples: int) -> int:
    """How many steps the rate's schedule is long, of a config whose steps are resolved."""
    epoch = max(1, examples // config.train.batch_size)
    return config.optim.schedule_epochs * epoch or config.train.steps


def schedule_warning(config: ConfigDict, examples: int) -> str:
    """What to know of a schedule that is shorter than the run; empty if it is not."""
    steps = schedule_steps(config, examples)
    if steps >= config.train.steps:
        return ""
    return (
        f"the schedule (optim.schedule_epochs={config.optim.schedule_epochs}) ends at step "
        f"{steps} of {config.train.steps}: as in the original, the rate rises again after it"
    )


def step_spec_from_config(config: ConfigDict, model: HVPNet, examples: int) -> StepSpec:
    """What a step needs beside arrays, from a config whose steps are resolved."""
    o = config.optim
    optimizer = make_optimizer(
        o.learning_rate,
        o.clip_learning_rate,
        schedule_steps(config, examples),
        o.warmup_fraction,
        o.weight_decay,
        o.max_grad_norm,
        freeze_patches=config.model.freeze_patches,
    )
    return StepSpec(
        model,
        optimizer,
        seed=config.seed,
        noise=config.distill.noise != "never",
        paired=config.similarity.word_weights == "paired",
        chunk_size=config.similarity.chunk_size,
    )

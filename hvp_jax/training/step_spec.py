"""The static arguments of a training step."""

import dataclasses

import optax
from ml_collections import ConfigDict

from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.training.optimizer import make_optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """All that a training step needs besides arrays. It is hashable and compiled in."""

    model: HVPNet
    optimizer: optax.GradientTransformationExtraArgs | None  # None: only the loss is needed
    seed: int = 0
    noise: bool = True
    paired: bool = False
    chunk_size: int = 16


def schedule_steps(config: ConfigDict, examples: int) -> int:
    """The length of the learning-rate schedule; `config.train.steps` must be resolved."""
    epoch = max(1, examples // config.train.batch_size)
    return config.optim.schedule_epochs * epoch or config.train.steps


def schedule_warning(config: ConfigDict, examples: int) -> str:
    """A warning if the schedule is shorter than the run, otherwise an empty string."""
    steps = schedule_steps(config, examples)
    if steps >= config.train.steps:
        return ""
    return (
        f"the schedule (optim.schedule_epochs={config.optim.schedule_epochs}) ends at step "
        f"{steps} of {config.train.steps}: as in the original, the learning rate rises again after "
        "it"
    )


def step_spec_from_config(config: ConfigDict, model: HVPNet, examples: int) -> StepSpec:
    """The spec of a run; `config.train.steps` must be resolved."""
    optim = config.optim
    optimizer = make_optimizer(
        optim.learning_rate,
        optim.clip_learning_rate,
        schedule_steps(config, examples),
        warmup_fraction=optim.warmup_fraction,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        freeze_patches=config.model.freeze_patches,
    )
    return StepSpec(
        model=model,
        optimizer=optimizer,
        seed=config.seed,
        noise=config.distill.noise != "never",
        paired=config.similarity.word_weights == "paired",
        chunk_size=config.similarity.chunk_size,
    )

"""The static arguments of a training step."""

import dataclasses

from ml_collections import ConfigDict

from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.training.optimization.optimizer import Optimizer, optimizer_from_config
from hvp_jax.training.optimization.param_groups import ClipLayers
from hvp_jax.training.optimization.schedules import AFTER_THE_END


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSpec:
    """All that a training step needs besides arrays. It is hashable and compiled in."""

    model: HVPNet
    optimizer: Optimizer | None  # None: only the loss is needed
    seed: int = 0
    noise: bool = True
    paired: bool = False
    chunk_size: int = 16
    loss_form: str = "per_term"
    same_video: str = "negative"  # otherwise batches are `BatchOfClips`
    clip_layers: ClipLayers | None = None  # None: all layers of CLIP learn


def steps_per_epoch(config: ConfigDict, examples: int) -> int:
    """Full batches; the last, incomplete one is dropped."""
    return max(1, examples // config.train.batch_size)


def schedule_steps(config: ConfigDict, examples: int) -> int:
    """The length of the learning-rate schedule; `config.train.steps` must be resolved."""
    return (
        config.optimizer.schedule_epochs * steps_per_epoch(config, examples) or config.train.steps
    )


def schedule_warning(config: ConfigDict, examples: int) -> str:
    """A warning if the schedule is shorter than the run, otherwise an empty string."""
    steps = schedule_steps(config, examples)
    then = AFTER_THE_END[config.optimizer.schedule]
    if steps >= config.train.steps or not then:
        return ""
    return (
        f"the schedule (optimizer.schedule_epochs={config.optimizer.schedule_epochs}) ends at step "
        f"{steps} of {config.train.steps}: {then}"
    )


def batch_warning(batch_size: int, videos: int, same_video: str = "negative") -> str:
    """A warning if the pairs of a batch have no, or false, wrong answers; else an empty string.

    The loss contrasts each caption with the videos of the other captions in its batch.
    `same_video` is the config's: what captions of one video are to each other.
    """
    if batch_size == 1:
        return "train.batch_size=1: a batch has no wrong answers, so that the loss is always 0"
    if videos >= batch_size or same_video != "negative":
        return ""
    return (
        f"there are {videos} training videos for train.batch_size={batch_size}: batches have "
        "several captions of one video, which count as wrong answers of each other; use a smaller "
        "batch, more videos, or loss.same_video=ignored or positive"
    )


def step_spec_from_config(config: ConfigDict, model: HVPNet, examples: int) -> StepSpec:
    """The spec of a run; `config.train.steps` must be resolved."""
    steps = schedule_steps(config, examples)
    layers = clip_layers_from_config(config.optimizer, model)
    return StepSpec(
        model=model,
        optimizer=optimizer_from_config(
            config.optimizer, steps, config.model.freeze_patches, layers
        ),
        seed=config.seed,
        noise=config.distillation.noise != "never",
        paired=config.similarity.word_weights == "paired",
        chunk_size=config.similarity.chunk_size,
        loss_form=config.loss.form,
        same_video=config.loss.same_video,
        clip_layers=layers,
    )


def clip_layers_from_config(optimizer: ConfigDict, model: HVPNet) -> ClipLayers | None:
    """What the keys `clip_layers` and `layer_decay` mean for a model; None if all learn alike."""
    if model.learning_layers is None and optimizer.layer_decay == 1:
        return None
    return ClipLayers(
        vision_layers=model.clip_config.vision_layers,
        text_layers=model.clip_config.text_layers,
        learning=model.learning_layers,
        decay=optimizer.layer_decay,
    )

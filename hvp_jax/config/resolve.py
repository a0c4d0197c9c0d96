"""Fills in keys left at None from other keys, the weights and the data."""

import copy
import dataclasses

from ml_collections import ConfigDict

from data.errors import UsageError
from hvp_jax.config.head import require_weights_fit, resolve_head
from hvp_jax.models.clip_config import (
    LANES,
    MAX_FUSED_TOKENS,
    VARIANTS,
    fits_fused_tower,
)
from hvp_jax.models.model_spec import ModelSpec

DEFAULT_VARIANT = "ViT-B/32"
PRETRAINED_EPOCHS = 5
SCRATCH_STEPS = 300
SCRATCH_EVALUATIONS = 5


def spec_of_variant(config: ConfigDict) -> ModelSpec:
    """The spec of a model that is trained from scratch."""
    clip_config = VARIANTS[config.model.variant or DEFAULT_VARIANT]
    if config.model.activation:
        clip_config = dataclasses.replace(clip_config, activation=config.model.activation)
    return ModelSpec(clip_config)


def resolve(config: ConfigDict, weights_spec: ModelSpec | None = None) -> ConfigDict:
    """A copy in which the keys are filled in that depend only on other keys and the weights.

    `weights_spec`: the model of the weights; None: random weights. Raises UsageError if a key
    contradicts it.
    `train.steps` and `train.eval_every` depend on the data too: `resolve_steps`.
    """
    config = copy.deepcopy(config)
    spec = weights_spec or spec_of_variant(config)
    clip_config, taps, _, pretrained = spec
    if config.model.variant is None and not pretrained:
        config.model.variant = DEFAULT_VARIANT
    if config.model.image_size is None:
        config.model.image_size = clip_config.image_size
    if config.model.activation is None:
        config.model.activation = clip_config.activation
    if config.model.taps is None:
        layers = clip_config.vision_layers
        # Without duplicates: a tower of one or two layers has fewer than three taps.
        config.model.taps = taps or tuple(sorted({1, max(1, layers // 2), layers}))
    last = clip_config.vision_layers
    config.model.taps = tuple(tap + last + 1 if tap < 0 else tap for tap in config.model.taps)
    resolve_head(config, spec.head)
    require_weights_fit(config, spec)
    if config.model.fused and not fits_fused_tower(clip_config):
        raise UsageError(
            f"config.model.fused=True needs a vision tower whose width is a multiple of {LANES}, "
            f"whose heads divide {LANES}, and at most {MAX_FUSED_TOKENS} tokens for each frame"
        )
    if config.data.val_seed is None:
        config.data.val_seed = config.seed
    _validate_taps(config.model.taps, clip_config.vision_layers)
    if config.data.max_words > clip_config.context_length:
        raise UsageError(
            f"config.data.max_words is {config.data.max_words}; the text tower takes at most "
            f"{clip_config.context_length}"
        )
    aggregation = config.frames.aggregation
    if aggregation == "transformer" and config.data.max_frames > clip_config.context_length:
        raise UsageError(
            f"config.data.max_frames is {config.data.max_frames}; "
            f"config.frames.aggregation=transformer takes at most {clip_config.context_length}"
        )
    if config.model.freeze_patches is None:
        config.model.freeze_patches = pretrained
    if config.optimizer.learning_rate is None:
        config.optimizer.learning_rate = 1e-4 if pretrained else 1e-3
    if config.optimizer.clip_learning_rate is None:
        config.optimizer.clip_learning_rate = 1e-7 if pretrained else config.optimizer.learning_rate
    return config


def check_platform(config: ConfigDict, platform: str) -> None:
    """Raises UsageError if `platform`, "tpu", "gpu" or "cpu", cannot run the config."""
    if config.model.fused and platform != "tpu":
        raise UsageError(
            f"config.model.fused=True needs a TPU, and JAX runs on a {platform} here: leave it out"
        )


def resolve_steps(config: ConfigDict, examples: int, pretrained: bool = False) -> ConfigDict:
    """A copy with `train.steps` and `train.eval_every` filled in.

    `examples` is the number of training examples of one epoch; the last, incomplete batch of an
    epoch is dropped.
    """
    config = copy.deepcopy(config)
    steps_per_epoch = max(1, examples // config.train.batch_size)
    if config.train.epochs is None and pretrained:
        config.train.epochs = PRETRAINED_EPOCHS
    if config.train.steps is None:
        has_epochs = config.train.epochs is not None
        config.train.steps = config.train.epochs * steps_per_epoch if has_epochs else SCRATCH_STEPS
    if config.train.epochs is None:
        config.train.epochs = -(-config.train.steps // steps_per_epoch)
    if config.train.eval_every is None:
        scratch_period = max(1, config.train.steps // SCRATCH_EVALUATIONS)
        config.train.eval_every = steps_per_epoch if pretrained else scratch_period
    return config


def _validate_taps(taps: tuple[int, ...], layers: int) -> None:
    increasing = all(a < b for a, b in zip(taps, taps[1:], strict=False))
    if not taps or not increasing or taps[0] < 1 or taps[-1] > layers:
        raise UsageError(
            f"config.model.taps is {taps}; taps are layers of the vision tower, in increasing "
            f"order, counted from 1 to {layers}"
        )

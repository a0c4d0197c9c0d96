"""What the keys of `configs/base.py` may be, and what a key left at None becomes."""

import copy
import json
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hvp_jax.errors import BadData, BadUse
from hvp_jax.sizes import VARIANTS, Sizes

# rsum: R@1 + R@5 + R@10 of both directions; of MdR and MnR, less is better
_FIGURES = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
BEST_BY = ("rsum", *(f"text_to_video/{x}" for x in _FIGURES))
BEST_BY += tuple(f"video_to_text/{x}" for x in _FIGURES)

CHOICES = {
    "parallel": ("pmap", "shard_map"),
    "precision": ("float32", "bfloat16"),
    "model.variant": tuple(VARIANTS),
    "model.remat": ("none", "dots", "full"),
    "distill.noise": ("train", "always", "never"),
    "similarity.word_weights": ("query", "paired"),
    "similarity.normalize": ("softmax", "none"),
    "data.dataset": (
        *("folder", "shapes"),
        *("msrvtt", "didemo", "activitynet", "lsmdc", "msvd", "vatex", "charades"),
    ),
    "train.choose_on": ("val", "test"),
    "train.best_by": BEST_BY,
    "eval.split": ("train", "val", "test"),
    "bench": ("step", "similarity", "input", "memory", "plan"),
}

LEAST = {
    "seed": 0,
    "model.image_size": 1,
    "distill.stages": 1,
    "similarity.chunk": 1,
    "data.frames": 1,
    "data.words": 3,  # start and end of text and one token between
    "data.held_out": 0,
    "data.workers": 0,
    "optim.rate": 0,
    "optim.clip_rate": 0,
    "optim.weight_decay": 0,
    "optim.warmup": 0,
    "optim.schedule_epochs": 0,
    "train.batch_size": 1,
    "train.epochs": 1,
    "train.steps": 1,
    "train.checkpoint_every": 1,
    "train.eval_every": 1,
    "train.log_every": 1,
    "train.most_skipped": 1,
    "train.stall_seconds": 0,
    "train.keep": 1,
    "train.keep_every": 0,
    "eval.batch_size": 1,
}

OPTIONAL = {  # the keys that may be None, and their type when they are not
    "model.variant": str,
    "model.image_size": int,
    "model.taps": tuple,
    "model.freeze_patches": bool,
    "distill.stages": int,
    "optim.rate": float,
    "optim.clip_rate": float,
    "train.epochs": int,
    "train.steps": int,
    "train.eval_every": int,
}

AUGMENT = ("augment.rand_augment", "augment.crop", "augment.flip")

STAGES = 3  # paper section 3.2
DEFAULT_VARIANT = "ViT-B/32"
EPOCHS = 5  # on a pretrained CLIP
SCRATCH_STEPS = 300
SCRATCH_EVALUATIONS = 5


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"model.taps": (1, 6, 12), ...}: every key that holds a value, with its group's name."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


class Told(NamedTuple):
    """What the weights of a model tell of it."""

    sizes: Sizes
    taps: tuple[int, ...] | None = None  # None: they do not tell
    stages: int = 0  # of distillation; 0: there are no weights, or CLIP's alone
    pretrained: bool = False  # training began, or begins, from weights of elsewhere


def told_by_variant(config: ConfigDict) -> Told:
    """What a model from scratch is."""
    return Told(VARIANTS[config.model.variant or DEFAULT_VARIANT])


def resolve(config: ConfigDict, told: Told | None = None) -> ConfigDict:
    """A copy with the keys filled in that depend on other keys and on the weights only.

    `told`: by the weights; None: there are none. Raises BadUse if a key does not fit.
    `train.steps` and `train.eval_every` depend on the data too: `resolve_steps`.
    """
    config = copy.deepcopy(config)
    sizes, taps, stages, pretrained = told or told_by_variant(config)
    if config.model.variant is None and not pretrained:
        config.model.variant = DEFAULT_VARIANT
    if config.model.image_size is None:
        config.model.image_size = sizes.image_size
    if config.model.taps is None:
        layers = sizes.vision_layers
        # A tower of one or two layers has no three.
        config.model.taps = taps or tuple(sorted({1, max(1, layers // 2), layers}))
    if config.distill.stages is None:
        config.distill.stages = stages or STAGES
    if stages and config.distill.stages != stages:
        raise BadUse(f"config.distill.stages is {config.distill.stages}; the weights have {stages}")
    _validate_taps(config.model.taps, sizes.vision_layers)
    if config.data.words > sizes.context_length:
        raise BadUse(
            f"config.data.words is {config.data.words}; the text tower takes at most "
            f"{sizes.context_length}"
        )
    if config.model.freeze_patches is None:
        config.model.freeze_patches = pretrained
    if config.optim.rate is None:
        config.optim.rate = 1e-4 if pretrained else 1e-3
    if config.optim.clip_rate is None:
        config.optim.clip_rate = 1e-7 if pretrained else config.optim.rate
    return config


def resolve_steps(config: ConfigDict, examples: int, pretrained: bool = False) -> ConfigDict:
    """A copy with `train.steps` and `train.eval_every` filled in.

    `examples` is the number of training examples of one epoch; what is left over
    after the last whole batch of an epoch is dropped.
    """
    config = copy.deepcopy(config)
    epoch = max(1, examples // config.train.batch_size)
    if config.train.epochs is None and pretrained:
        config.train.epochs = EPOCHS
    if config.train.steps is None:
        by_epochs = config.train.epochs is not None
        config.train.steps = config.train.epochs * epoch if by_epochs else SCRATCH_STEPS
    if config.train.epochs is None:
        config.train.epochs = -(-config.train.steps // epoch)
    if config.train.eval_every is None:
        fifth = max(1, config.train.steps // SCRATCH_EVALUATIONS)
        config.train.eval_every = epoch if pretrained else fifth
    return config


def validate(config: ConfigDict) -> None:
    """Raises BadUse, naming the key, if a value is outside what the key allows."""
    flat = flatten(config)
    for key in (*CHOICES, *LEAST, *OPTIONAL, *AUGMENT, "profile"):
        if key not in flat:
            raise BadUse(f"the config has no key config.{key}; start it from configs/base.py")
    for key, choices in CHOICES.items():
        if flat[key] not in choices and not (key in OPTIONAL and flat[key] is None):
            raise BadUse(f"config.{key} is {flat[key]!r}; it must be one of {', '.join(choices)}")
    for key, least in LEAST.items():
        if flat[key] is not None and flat[key] < least:
            raise BadUse(f"config.{key} is {flat[key]}; it must be at least {least}")
    for key, whole in (("optim.warmup", "schedule"), ("data.held_out", "training videos")):
        if flat[key] >= 1:
            raise BadUse(f"config.{key} is {flat[key]}; it is a share of the {whole}, below 1")
    if flat["optim.max_grad_norm"] <= 0:
        raise BadUse(
            f"config.optim.max_grad_norm is {flat['optim.max_grad_norm']}; it must be above 0"
        )
    if flat["fsdp"] and flat["parallel"] != "shard_map":
        raise BadUse("config.fsdp needs config.parallel=shard_map; under pmap weights are whole")
    _validate_augment(flat["augment.rand_augment"], flat["augment.crop"])
    if flat["profile"]:
        from hvp_jax import profiling  # JAX, which few commands need this early

        profiling.parse(flat["profile"])
    if not flat["model.weights"]:  # else they tell the sizes, once they are opened
        resolve(config)


def _validate_taps(taps: tuple[int, ...], layers: int) -> None:
    in_order = all(a < b for a, b in zip(taps, taps[1:], strict=False))
    if not taps or not in_order or taps[0] < 1 or taps[-1] > layers:
        raise BadUse(
            f"config.model.taps is {taps}; taps are layers of the vision tower, "
            f"rising, counted from 1 to {layers}"
        )


def _validate_augment(rand_augment: str, crop: float) -> None:
    if not 0 < crop <= 1:
        raise BadUse(
            f"config.augment.crop is {crop}; it is a share of the area, above 0 and at most 1"
        )
    if rand_augment:
        from data.augment import parse  # NumPy and Pillow, which few commands need this early

        try:
            parse(rand_augment)
        except BadUse as error:
            raise BadUse(f"config.augment.rand_augment {error}") from None


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON; `from_json` gives back an equal one."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The locked config that `to_json` wrote. Raises BadData if it is not one."""
    try:
        config = _typed(json.loads(text))
    except ValueError as error:
        raise BadData(f"not the JSON of a config: {error}") from None
    return config.lock()


def _typed(values: Any, prefix: str = "") -> ConfigDict:
    """JSON knows no tuple, and a null there does not tell its type."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix or 'it'} is no object")
    config = ConfigDict()
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict):
            config[name] = _typed(value, f"{key}.")
            continue
        if key in OPTIONAL:
            config[name] = placeholder(OPTIONAL[key])
        config[name] = tuple(value) if isinstance(value, list) else value
    return config


def difference(a: ConfigDict, b: ConfigDict) -> list[tuple[str, Any, Any]]:
    """(key, its value in `a`, its value in `b`) where they differ; None where there is none."""
    flat_a, flat_b = flatten(a), flatten(b)
    keys = sorted(flat_a.keys() | flat_b.keys())
    pairs = [(key, flat_a.get(key), flat_b.get(key)) for key in keys]
    return [(key, of_a, of_b) for key, of_a, of_b in pairs if of_a != of_b]

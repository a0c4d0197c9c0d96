"""Whether the values of a config are allowed; the tables of what is are in `schema.py`."""

import re
from typing import Any

from ml_collections import ConfigDict

from data.errors import UsageError
from hvp_jax.config.resolve import resolve
from hvp_jax.config.schema import (
    AUGMENT,
    CHOICES,
    GENERATIONS,
    MINIMUM,
    OPTIONAL,
    RENAMED,
    flatten,
    parse_profile,
)
from hvp_jax.models.clip_config import TERMS


def validate(config: ConfigDict) -> None:
    """Raises UsageError, naming the key, if a value is not allowed."""
    flat = flatten(config)
    for key in flat:
        if key in RENAMED:
            raise UsageError(f"config.{key} is now called config.{RENAMED[key]}; use that name")
    for key in (*CHOICES, *MINIMUM, *OPTIONAL, *AUGMENT, "profile", "compile_cache"):
        if key not in flat:
            raise UsageError(f"the config has no key config.{key}; build it from configs/base.py")
    for key, choices in CHOICES.items():
        if flat[key] not in choices and not (key in OPTIONAL and flat[key] is None):
            raise UsageError(
                f"config.{key} is {flat[key]!r}; it must be one of {', '.join(choices)}"
            )
    for key, least in MINIMUM.items():
        if flat[key] is not None and flat[key] < least:
            raise UsageError(f"config.{key} is {flat[key]}; it must be at least {least}")
    _validate_ranges(flat)
    if flat["fsdp"] and flat["parallel"] != "shard_map":
        raise UsageError("config.fsdp needs config.parallel=shard_map; pmap replicates the weights")
    if flat["data.shards"] and flat["data.frame_choice"] != "uniform":
        raise UsageError(
            f"config.data.frame_choice={flat['data.frame_choice']} needs the video files, and "
            "config.data.shards has evenly spaced frames only: leave config.data.shards empty, or "
            "use config.data.frame_choice=uniform"
        )
    _validate_model(flat)
    _validate_augment(flat["augment.rand_augment"], flat["augment.crop"])
    if flat["profile"]:
        parse_profile(flat["profile"])
    _validate_topology(flat["topology"])
    if not flat["model.weights"]:  # else the sizes are known only once the weights are opened
        resolve(config)


def _validate_ranges(flat: dict[str, Any]) -> None:
    for key, total in (
        ("optimizer.warmup_fraction", "schedule"),
        ("data.val_fraction", "training videos"),
    ):
        if flat[key] >= 1:
            raise UsageError(
                f"config.{key} is {flat[key]}; it is a fraction of the {total}, below 1"
            )
    if flat["optimizer.max_grad_norm"] <= 0:
        raise UsageError(
            f"config.optimizer.max_grad_norm is {flat['optimizer.max_grad_norm']}; it must be "
            "above 0"
        )


def _validate_model(flat: dict[str, Any]) -> None:
    terms = flat["similarity.terms"]
    if not terms or len(set(terms)) < len(terms) or not set(terms) <= set(TERMS):
        raise UsageError(
            f"config.similarity.terms is {','.join(terms)!r}; it must be one or several of "
            f"{', '.join(TERMS)}, each once, with commas between"
        )
    if not re.fullmatch("all|none|last:[1-9][0-9]*", flat["optimizer.clip_layers"]):
        raise UsageError(
            f"config.optimizer.clip_layers is {flat['optimizer.clip_layers']!r}; it must be all, "
            "none or last:N, such as last:4"
        )
    if not 0 < flat["optimizer.layer_decay"] <= 1:
        raise UsageError(
            f"config.optimizer.layer_decay is {flat['optimizer.layer_decay']}; it must be above 0 "
            "and at most 1"
        )


def _validate_augment(rand_augment: str, crop: float) -> None:
    if not 0 < crop <= 1:
        raise UsageError(
            f"config.augment.crop is {crop}; it is a fraction of the area, above 0 and at most 1"
        )
    if rand_augment:
        from data.batches.augment import parse  # NumPy and Pillow: only if needed

        try:
            parse(rand_augment)
        except UsageError as error:
            raise UsageError(f"config.augment.rand_augment {error}") from None


def _validate_topology(text: str) -> None:
    one = rf"([1-9][0-9]*x)?({'|'.join(GENERATIONS)}):[1-9][0-9]*(x[1-9][0-9]*){{1,2}}"
    if not re.fullmatch(rf"{one}(,{one})*", text):
        raise UsageError(
            f"config.topology is {text!r}; it must be {', '.join(GENERATIONS[:-1])} or "
            f"{GENERATIONS[-1]} and the chips along each axis, such as v5e:4x4, or 2xv5e:4x4 for "
            "two slices, or several with commas between, such as v5e:4x4,v4:2x2x4"
        )

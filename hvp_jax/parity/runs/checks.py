"""What is wrong with the content of a golden file of a run. All functions raise DataError."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import DataError
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.layers import PIXEL_MEAN, PIXEL_STD
from hvp_jax.parity.golden import METRIC_GROUPS
from hvp_jax.training.optimization.optimizer import MAX_LOG_SCALE

INPUTS = {  # axes of every array that a run starts from; equal letters are equal lengths
    "data/video": "CTHWK",
    "data/video_frames": "C",
    "data/text_ids": "NL",
    "data/text_mask": "NL",
    "data/clip_of_caption": "N",
    "batches": "SB",
}
CURVES = (
    *("loss/curve", "loss/word_patch", "loss/sentence_patch", "loss/sentence_frame"),
    *("grad_norm", "lr_factor", "logit_scale", "loss/curve_perturbed"),
)
FROZEN = ["clip.visual.conv1.weight"]
REPLAYABLE = {  # keys of the JSON, and the values with which the model can replay a run
    "frozen": ([], FROZEN),
    "noise": (0,),
    "logit_scale_at_most": (MAX_LOG_SCALE,),
    "mean": (list(PIXEL_MEAN),),
    "std": (list(PIXEL_STD),),
}
OPTIMIZER = {  # key: greatest value; all are at least 0
    **dict.fromkeys(("lr", "coef_lr", "weight_decay", "eps", "max_grad_norm"), 1e9),
    **dict.fromkeys(("warmup", "b1", "b2"), 1),
    "t_total": 2**31 - 1,
}
OPTIONAL = {"max_grad_norm": 1.0}


def check_inputs(arrays: Mapping[str, np.ndarray], config: ClipConfig) -> None:
    sizes = {"H": config.image_size, "W": config.image_size, "K": 3}
    for name, axes in INPUTS.items():
        if name not in arrays:
            raise DataError(f"holds no array {name}")
        array = arrays[name]
        if array.dtype.kind not in "iu" or array.ndim != len(axes) or 0 in array.shape:
            raise DataError(f"{name} is not an array of integers with {len(axes)} axes")
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise DataError(
                    f"{name} has shape {list(array.shape)}, which fits neither the weights nor the "
                    "other arrays"
                )
    if arrays["data/video"].dtype != np.uint8:
        raise DataError("data/video is not uint8")
    for name, least, greatest in (
        ("data/video_frames", 1, sizes["T"]),
        ("data/text_ids", 0, config.vocab_size - 1),
        ("data/text_mask", 0, 1),
        ("data/clip_of_caption", 0, sizes["C"] - 1),
        ("batches", 0, sizes["N"] - 1),
    ):
        if arrays[name].min() < least or arrays[name].max() > greatest:
            raise DataError(f"{name} has values outside {least} to {greatest}")
    if sizes["L"] > config.context_length:
        raise DataError(f"data/text_ids has {sizes['L']} words, the model {config.context_length}")


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Weights and results are finite real numbers, and curves have the steps of the run."""
    for name, array in arrays.items():
        if name.startswith("data/") or name == "batches":  # `check_inputs` looks at those used
            continue
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"{name} holds values that are not finite numbers")
        if name in CURVES and array.shape != (len(arrays["batches"]),):
            raise DataError(f"{name} does not have the {len(arrays['batches'])} steps of batches")
    if "loss/curve" not in arrays:
        raise DataError("holds no array loss/curve")


def check_metadata(metadata: dict[str, Any], config: ClipConfig, steps: int) -> None:
    for key in ("layers_zero_based", "optimizer", "frozen"):
        if key not in metadata:
            raise DataError(f"its JSON has no {key!r}")
    taps, layers = metadata["layers_zero_based"], config.vision_layers
    if not _is_list(taps, int) or not taps or sorted({x for x in taps if 0 <= x < layers}) != taps:
        raise DataError(f"its JSON: layers_zero_based is {taps}; the layers are 0 to {layers - 1}")
    _check_optimizer(_object(metadata, "optimizer"))
    stable = metadata.get("stable_steps", steps)
    if not isinstance(stable, int) or stable < 1:
        raise DataError(f"its JSON: stable_steps is {stable}, not a number of steps from 1")
    given = metadata | _object(metadata, "normalisation")
    for key, allowed in REPLAYABLE.items():
        if (value := given.get(key, allowed[0])) not in allowed:
            raise DataError(
                f"its JSON: {key} is {value}; only runs with {' or '.join(map(str, allowed))} can "
                "be replayed"
            )
    for group in METRIC_GROUPS:
        for key, value in _object(metadata, group).items():
            if not _is_number(value) and not isinstance(value, list):
                raise DataError(f"its JSON: {group}.{key} is {value}, not a number")
    _check_measured(_object(metadata, "measured"))


def _check_optimizer(optimizer: dict[str, Any]) -> None:
    for key, greatest in OPTIMIZER.items():
        value: Any = optimizer[key] if key in optimizer else OPTIONAL.get(key)
        if not _is_number(value) or not 0 <= value <= greatest:
            raise DataError(
                f"its JSON: optimizer.{key} is {value}, not a number from 0 to {greatest:g}"
            )
    if optimizer["t_total"] != int(optimizer["t_total"]) or optimizer["t_total"] < 1:
        raise DataError("its JSON: optimizer.t_total is no number of steps from 1")


def _check_measured(measured: dict[str, Any]) -> None:
    """What is known of PyTorch's own float32 run."""
    errors, means = _object(measured, "float32"), _object(measured, "mean_loss_of_quarters")
    if not all(_is_number(value) for value in errors.values()):
        raise DataError("its JSON: measured.float32 holds values that are not numbers")
    for name, values in means.items():
        if not _is_list(values, (int, float)) or len(values) != 4 or not np.isfinite(values).all():
            raise DataError(f"its JSON: measured.mean_loss_of_quarters.{name} is not four numbers")


def check_test_split(metadata: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """The test split's captions belong to its clips, and each of these has one."""
    ranges = _object(metadata, "test")
    for kind, array in (("captions", "data/clip_of_caption"), ("clips", "data/video")):
        bounds: Any = ranges.get(kind)
        valid = _is_list(bounds, int) and len(bounds) == 2
        if not valid or not 0 <= bounds[0] < bounds[1] <= len(arrays[array]):
            raise DataError(f"its JSON: test.{kind} is no range of the {kind} of the file")
    clips = arrays["data/clip_of_caption"][slice(*ranges["captions"])]
    if set(clips.tolist()) != set(range(*ranges["clips"])):
        raise DataError("its JSON: the captions of `test` are not those of its clips")


def _object(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    value = metadata.get(key, {})
    if not isinstance(value, dict):
        raise DataError(f"its JSON: {key} is not an object")
    return value


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= 2**63 and math.isfinite(value)


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(x, kind) and not isinstance(x, bool) for x in value
    )

"""A golden file of a whole training run: its data, its batches, and what PyTorch computed.

What the run starts from, for C clips, N captions and S steps of B pairs:

    state/NAME                          initial weights, PyTorch's names and layouts
    data/video, data/video_frames       [C, T, H, W, 3] uint8 frames, [C] how many are valid
    data/text_ids, data/text_mask       [N, W]
    data/clip_of_caption                [N] the clip of each caption
    batches                             [S, B] the captions of each step

and what is compared:

    loss/curve, loss/TERM, grad_norm    [S] before each update
    lr_factor, logit_scale              [S] in each update, and after it
    loss/curve_perturbed                [S] of a run from slightly perturbed weights
    afterK/NAME                         weights after K updates
    eval/similarity[_half]              test captions x test clips after the last step

The JSON beside it has the constants of the optimizer and the ranges of the test split. A run is in
the form of the original: raw token weights, word weights of the paired caption, padding scored.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from data.batches.batch import Batch, TextBatch, VideoBatch
from data.errors import DataError
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import PIXEL_MEAN, PIXEL_STD
from hvp_jax.training.optimizer import MAX_LOG_SCALE
from hvp_jax.weights import torch_params
from hvp_jax.weights.infer_config import infer_config

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
OPTIMIZER = ("lr", "coef_lr", "weight_decay", "warmup", "t_total", "b1", "b2", "eps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenRun:
    """The content of a file, checked; `stages` and `clip_config` follow from its weights."""

    path: Path
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    clip_config: ClipConfig
    stages: int

    @property
    def steps(self) -> int:
        return len(self.arrays["batches"])

    @property
    def batch_size(self) -> int:
        return self.arrays["batches"].shape[1]

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(i + 1 for i in self.metadata["layers_zero_based"])

    @property
    def freezes_patches(self) -> bool:
        return bool(self.metadata["frozen"])

    @property
    def stable_steps(self) -> int:
        """Leading steps in which PyTorch's own run does not depend on rounding."""
        return min(self.metadata.get("stable_steps", self.steps), self.steps)

    @functools.cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """The arrays that PyTorch computed, by name."""
        inputs = ("state/", "data/", "batches")
        return {name: x for name, x in self.arrays.items() if not name.startswith(inputs)}

    @functools.cached_property
    def snapshots(self) -> dict[int, list[str]]:
        """The tensors that were recorded after so many updates."""
        found: dict[int, list[str]] = {}
        for name in self.expected:
            if match := re.fullmatch(r"after(\d+)/(.+)", name):
                found.setdefault(int(match[1]), []).append(match[2])
        return found

    def params(self) -> dict[str, Any]:
        """The initial weights, as a tree of float32 arrays."""
        return torch_params.from_torch(state_of(self.arrays))

    def batch(self, step: int, part: slice = slice(None)) -> Batch:
        """The pairs of one step, counted from 0, or a part of them."""
        captions = self.arrays["batches"][step][part]
        clips = self.arrays["data/clip_of_caption"][captions]
        return Batch(*self.texts(captions), *self.videos(clips))

    def texts(self, captions: np.ndarray) -> TextBatch:
        ids, mask = self.arrays["data/text_ids"], self.arrays["data/text_mask"]
        return TextBatch(ids[captions].astype(np.int32), mask[captions].astype(bool))

    def videos(self, clips: np.ndarray) -> VideoBatch:
        video, frames = self.arrays["data/video"][clips], self.arrays["data/video_frames"][clips]
        return VideoBatch(video, np.arange(video.shape[1]) < frames[:, None])

    def test_split(self, kind: str) -> np.ndarray:
        """The numbers of the test split's "captions" or "clips"."""
        return np.arange(*self.metadata["test"][kind])

    def test_targets(self) -> np.ndarray:
        """The clip of each caption of the test split, counted from its first clip."""
        clip_of_caption = self.arrays["data/clip_of_caption"][self.test_split("captions")]
        return clip_of_caption - self.metadata["test"]["clips"][0]


def is_run(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the arrays of a golden file are those of a whole run."""
    return "batches" in arrays


def state_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}


def open_run(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> GoldenRun:
    """Checks the content of a file. Raises DataError that names the array or the key."""
    state = state_of(arrays)
    if not state:
        raise DataError(f"{path}: holds no state/ arrays")
    try:
        clip_config, stages = infer_config({name: x.shape for name, x in state.items()})
        _check_inputs(arrays, clip_config)
        _check_metadata(metadata, clip_config)
        run = GoldenRun(
            path=path, arrays=arrays, metadata=metadata, clip_config=clip_config, stages=stages
        )
        _check_expected(run)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return run


def _check_inputs(arrays: dict[str, np.ndarray], config: ClipConfig) -> None:
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


def _check_metadata(metadata: dict[str, Any], config: ClipConfig) -> None:
    for key in ("layers_zero_based", "optimizer", "frozen"):
        if key not in metadata:
            raise DataError(f"its JSON has no {key!r}")
    taps, layers = metadata["layers_zero_based"], config.vision_layers
    if not _is_list_of_ints(taps) or sorted({x for x in taps if 0 <= x < layers}) != taps:
        raise DataError(f"its JSON: layers_zero_based is {taps}; the layers are 0 to {layers - 1}")
    for key in ("optimizer", "normalisation"):
        if not isinstance(metadata.get(key, {}), dict):
            raise DataError(f"its JSON: {key} is not an object")
    for key in OPTIMIZER:
        value = metadata["optimizer"].get(key)
        if not _is_number(value):
            raise DataError(f"its JSON: optimizer.{key} is {value}, not a number")
    if metadata["optimizer"]["t_total"] < 1:
        raise DataError("its JSON: optimizer.t_total is the length of the schedule, at least 1")
    if not _is_number(metadata.get("stable_steps", 0)):
        raise DataError(f"its JSON: stable_steps is {metadata['stable_steps']}, not a number")
    given = metadata | metadata.get("normalisation", {})
    for key, allowed in REPLAYABLE.items():
        if (value := given.get(key, allowed[0])) not in allowed:
            raise DataError(
                f"its JSON: {key} is {value}; only runs with {' or '.join(map(str, allowed))} can "
                "be replayed"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of_ints(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, int) for x in value)


def _check_expected(run: GoldenRun) -> None:
    if "loss/curve" not in run.arrays:
        raise DataError("holds no array loss/curve")
    for name in CURVES:
        if name in run.arrays and run.arrays[name].shape != (run.steps,):
            raise DataError(f"{name} does not have the {run.steps} steps of batches")
    for step in run.snapshots:
        if not 1 <= step <= run.steps:
            raise DataError(f"after{step}/ is no step of the run, which has {run.steps}")
    if any(name.startswith("eval/") for name in run.arrays):
        for kind, array in (("captions", "data/clip_of_caption"), ("clips", "data/video")):
            first, end = run.metadata.get("test", {}).get(kind, (0, 0))
            if not 0 <= first < end <= len(run.arrays[array]):
                raise DataError(f"its JSON: test.{kind} is no range of the {kind} of the file")
        if set(run.test_targets()) != set(range(len(run.test_split("clips")))):
            raise DataError("its JSON: the captions of `test` are not those of its clips")

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

The JSON beside it has `layers_zero_based` (the taps), `optimizer` (lr, coef_lr, weight_decay,
warmup, t_total, b1, b2, eps, and optionally max_grad_norm), `frozen` (names of tensors)
and, where there are scores, `test` ({"clips": [first, end], "captions": [first, end]}). Optional:
`stable_steps` (leading steps in which rounding has no effect), `metrics_t2v`, `metrics_v2t` and
`metrics_half_*`, `measured` (PyTorch's own float32 run: `float32`, `mean_loss_of_quarters`),
`normalisation`, `noise`, `logit_scale_at_most`. A run is in the form of the original: raw token
weights, word weights of the paired caption, padding scored.
"""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from data.batches.batch import Batch, TextBatch, VideoBatch
from data.errors import DataError
from data.storage.path import Path
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.parity.runs.checks import (
    check_inputs,
    check_metadata,
    check_numbers,
    check_test_split,
)
from hvp_jax.weights import torch_params
from hvp_jax.weights.infer_config import infer_config


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
        inputs = ("state/", "data/")
        return {
            name: x
            for name, x in self.arrays.items()
            if name != "batches" and not name.startswith(inputs)
        }

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

    @property
    def is_evaluated(self) -> bool:
        """Whether there are scores or metrics of the test split."""
        names = (*self.arrays, *self.metadata)
        return any(name.startswith(("eval/", "metrics_")) for name in names)

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
        check_numbers(arrays)
        clip_config, stages = infer_config({name: x.shape for name, x in state.items()})
        check_inputs(arrays, clip_config)
        check_metadata(metadata, clip_config, len(arrays["batches"]))
        run = GoldenRun(
            path=path, arrays=arrays, metadata=metadata, clip_config=clip_config, stages=stages
        )
        for step in run.snapshots:
            if not 1 <= step <= run.steps:
                raise DataError(f"after{step}/ is no step of the run, which has {run.steps}")
        if run.is_evaluated:
            check_test_split(metadata, arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return run

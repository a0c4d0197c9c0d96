"""Compares every array of a golden file with the model's; one that is not compared fails.

A golden file holds what the PyTorch original computed: weights, inputs, every
intermediate, losses, gradients, weights after some steps. The model is built from the
shapes in the file. The error of an array is its greatest absolute difference over the
greatest magnitude in the golden array; ids and clusters must be equal.
"""

import re
import zlib

import jax.numpy as jnp
import numpy as np

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parity.compare import TOLERANCE, compare_arrays
from hvp_jax.parity.model_arrays import compute_arrays
from hvp_jax.parity.report import GoldenReport
from hvp_jax.weights import torch_params
from hvp_jax.weights.identity.beside import read_json
from hvp_jax.weights.infer_config import infer_config

INPUTS = ("input/", "eval/text", "eval/video")
METADATA = ("recorded_in",)
METRIC_GROUPS = ("metrics_t2v", "metrics_v2t", "metrics_half_t2v", "metrics_half_v2t")
DEFAULT_TAPS = (0, 5, 11)  # of the full-size file, counted from 0


def load_golden(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and the metadata (JSON) of a golden file. Raises UsageError or DataError."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such golden file"
        raise UsageError(f"{path}: {what}")
    try:
        with storage.open_read(path) as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own types
        raise DataError(f"{path}: not a readable .npz file ({error})") from None
    json_path = path.with_suffix(".json")
    if not json_path.is_file():
        raise UsageError(
            f"{json_path}: no such file; a golden file needs a JSON file of the same name"
        )
    return arrays, read_json(json_path)


def synthetic_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights determined by their names, so that a full-size file need not store them."""
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = np.asarray(rng.standard_normal(shape), np.float32)
        is_norm = any(part in name for part in (".ln_", "ln_final", ".norm.", ".norm1."))
        if name.endswith("logit_scale"):
            w = np.asarray(np.log(1 / 0.07))
        elif is_norm and name.endswith(".weight"):
            w = 1 + 0.02 * w
        elif len(shape) < 2 and "class_embedding" not in name:
            w = 0.02 * w
        elif "embedding" in name:
            w = 0.1 * w
        else:
            in_out = name.endswith(("visual.proj", "text_projection"))  # [in, out]
            fan_in = shape[0] if in_out else int(np.prod(shape[1:]))
            w = w / np.sqrt(fan_in)
        state[name] = np.asarray(w, np.float32)
    return state


def golden_batch(
    arrays: dict[str, np.ndarray], group: str, clip_config: ClipConfig, path: Path
) -> dict[str, np.ndarray]:
    """The batch stored under `group`. Raises DataError for invalid ids, masks or shapes."""
    batch: dict[str, np.ndarray] = {}
    for name in ("text_ids", "text_mask", "video", "video_mask"):
        array = arrays.get(f"{group}/{name}")
        if array is None and name == "video":
            array = _enlarged_video(arrays, group, clip_config.image_size)
        if array is None and name == "video_mask" and "video" in batch:
            array = np.ones(batch["video"].shape[:2], np.int32)
        if array is None:
            raise DataError(f"{path}: holds no array {group}/{name}")
        if name.endswith("mask") and not np.isin(array, (0, 1)).all():
            raise DataError(f"{path}: {group}/{name} holds values other than 0 and 1")
        batch[name] = array
    ids = batch["text_ids"]
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= clip_config.vocab_size:
        raise DataError(
            f"{path}: {group}/text_ids are not ids of a vocabulary of {clip_config.vocab_size}"
        )
    for name, mask in (("text_ids", "text_mask"), ("video", "video_mask")):
        if batch[name].shape[:2] != batch[mask].shape:
            raise DataError(f"{path}: {group}/{name} and {group}/{mask} differ in shape")
    if batch["video"].shape[2:] != (3, clip_config.image_size, clip_config.image_size):
        raise DataError(f"{path}: {group}/video is not of size {clip_config.image_size}")
    return batch


def _enlarged_video(arrays: dict[str, np.ndarray], group: str, size: int) -> np.ndarray | None:
    """A video stored small, enlarged by repetition: `GROUP/video_14x14` -> 224 x 224."""
    for name, array in arrays.items():
        if re.fullmatch(rf"{group}/video_\d+x\d+", name):
            times = size // array.shape[-1]
            return array.repeat(times, axis=-1).repeat(times, axis=-2)
    return None


def compare_golden(
    golden: Path, arrays: dict[str, np.ndarray], metadata: dict, precision: str
) -> GoldenReport:
    """Compares every array of the file `golden`, which `load_golden` has read."""
    state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
    if not state:
        if "parameters" not in metadata:
            raise DataError(f"{golden}: holds no state/ arrays, and no `parameters` in its JSON")
        state = synthetic_weights(metadata["parameters"])
    clip_config, stages = infer_config({name: x.shape for name, x in state.items()})
    params = torch_params.from_torch(state)
    taps = tuple(i + 1 for i in metadata.get("layers_zero_based", DEFAULT_TAPS))
    batches = {
        group: golden_batch(arrays, group, clip_config, golden)
        for group in ("input", "eval")
        if group == "input" or f"{group}/text_ids" in arrays
    }
    dtype = jnp.dtype(precision)
    model = HVPNet(
        clip_config, taps, stages, normalize="none", mask_padding=False, remat="none", dtype=dtype
    )
    computed = compute_arrays(model, params, batches, metadata, wanted=set(arrays))
    computed |= {f"state/{name}": x for name, x in torch_params.to_torch(params).items()}

    expected = {
        name: array
        for name, array in arrays.items()
        if not name.startswith(INPUTS) and name not in METADATA
    }
    tolerance = TOLERANCE[precision]
    rows = [
        compare_arrays(name, array, computed.get(name), tolerance)
        for name, array in expected.items()
    ]
    rows += [
        compare_arrays(f"{name} (.json)", np.asarray(value, float), computed.get(name), tolerance)
        for name, value in json_metrics(metadata).items()
    ]
    failed = [row.name for row in rows if not row.ok]
    return GoldenReport(
        ok=not failed,
        golden=str(golden),
        precision=precision,
        compared=len(rows),
        inputs=[name for name in arrays if name.startswith(INPUTS)],
        failed=failed,
        arrays=rows,
    )


def json_metrics(metadata: dict) -> dict[str, object]:
    """The retrieval metrics that the JSON records."""
    return {
        f"{direction}/{name}": value
        for direction in METRIC_GROUPS
        for name, value in metadata.get(direction, {}).items()
        if name in ("R1", "R5", "R10", "R50", "MedianR", "MeanR")
    }

"""A golden file against ours: every array in it, or the answer is no.

A golden file holds what the PyTorch original computed (weights, inputs, every
intermediate, losses, gradients, weights after some steps). Whatever its sizes, the
model is built from the shapes in it. The error of an array is its greatest absolute
difference over the greatest magnitude in the golden array; ids and clusters are exact.
"""

import json
import re
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from data.errors import DataError, UsageError
from hvp_jax.parity.compare import TOLERANCE, compare_arrays, table
from hvp_jax.parity.model_arrays import compute_arrays
from hvp_jax.weights import torch_params
from hvp_jax.weights.infer_config import infer_config

INPUTS = ("input/", "eval/text", "eval/video")
METADATA = ("recorded_in",)
DEFAULT_TAPS = (0, 5, 11)  # of the file by rule, counted from 0


def load_golden(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a golden file and the JSON beside it. Raises UsageError or DataError."""
    if not path.is_file():
        raise UsageError(f"{path}: no such golden file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise DataError(f"{path}: not a readable .npz file ({error})") from None
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise UsageError(f"{beside}: no such file; a golden file has its JSON beside it")
    try:
        about = json.loads(beside.read_text())
    except ValueError as error:
        raise DataError(f"{beside}: not JSON ({error})") from None
    if not isinstance(about, dict):
        raise DataError(f"{beside}: not a JSON object")
    return arrays, about


def synthetic_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights that follow from their names, so that a full-size file need not store them."""
    state = {}
    for name, shape in shapes.items():
        w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        w = np.asarray(w, np.float32)
        norm = any(part in name for part in (".ln_", "ln_final", ".norm.", ".norm1."))
        if name.endswith("logit_scale"):
            w = np.float32(np.log(1 / 0.07))
        elif norm and name.endswith(".weight"):
            w = 1 + 0.02 * w
        elif len(shape) < 2 and "class_embedding" not in name:
            w = 0.02 * w
        elif "embedding" in name:
            w = 0.1 * w
        else:
            of_first_axis = name.endswith(("visual.proj", "text_projection"))
            fan = shape[0] if of_first_axis else int(np.prod(shape[1:]))
            w = w / np.sqrt(fan)
        state[name] = np.asarray(w, np.float32)
    return state


def golden_batch(arrays: dict[str, np.ndarray], group: str, sizes, path: Path) -> dict:
    """The batch stored under `group`, checked: ids in the vocabulary, masks of 0 and 1."""
    batch = {}
    for name in ("text_ids", "text_mask", "video", "video_mask"):
        array = arrays.get(f"{group}/{name}")
        if array is None and name == "video":
            array = _small_video(arrays, group, sizes.image_size)
        if array is None and name == "video_mask" and "video" in batch:
            array = np.ones(batch["video"].shape[:2], np.int32)
        if array is None:
            raise DataError(f"{path}: holds no array {group}/{name}")
        if name.endswith("mask") and not np.isin(array, (0, 1)).all():
            raise DataError(f"{path}: {group}/{name} holds values other than 0 and 1")
        batch[name] = array
    ids = batch["text_ids"]
    if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= sizes.vocab_size:
        raise DataError(
            f"{path}: {group}/text_ids are not ids of a vocabulary of {sizes.vocab_size}"
        )
    for name, mask in (("text_ids", "text_mask"), ("video", "video_mask")):
        if batch[name].shape[:2] != batch[mask].shape:
            raise DataError(f"{path}: {group}/{name} and {group}/{mask} differ in shape")
    if batch["video"].shape[2:] != (3, sizes.image_size, sizes.image_size):
        raise DataError(f"{path}: {group}/video is not of size {sizes.image_size}")
    return batch


def _small_video(arrays: dict, group: str, size: int) -> np.ndarray | None:
    """A video stored small, enlarged by repetition: `GROUP/video_14x14` -> 224 x 224."""
    for name, array in arrays.items():
        if re.fullmatch(rf"{group}/video_\d+x\d+", name):
            times = size // array.shape[-1]
            return array.repeat(times, axis=-1).repeat(times, axis=-2)
    return None


def compare_golden(golden: Path, precision: str) -> dict:
    """Compares every array of `golden`."""
    arrays, about = load_golden(Path(golden))
    state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
    if not state:
        if "parameters" not in about:
            raise DataError(f"{golden}: holds no state/ arrays, and no `parameters` in its JSON")
        state = synthetic_weights(about["parameters"])
    sizes, stages = infer_config({name: x.shape for name, x in state.items()})
    params = torch_params.from_torch(state)
    taps = tuple(i + 1 for i in about.get("layers_zero_based", DEFAULT_TAPS))
    batches = {
        group: golden_batch(arrays, group, sizes, Path(golden))
        for group in ("input", "eval")
        if group == "input" or f"{group}/text_ids" in arrays
    }
    ours = compute_arrays(
        params, sizes, stages, taps, batches, about, set(arrays), jnp.dtype(precision)
    )
    ours |= {f"state/{name}": x for name, x in torch_params.to_torch(params).items()}

    rows = [
        compare_arrays(name, array, ours.get(name), TOLERANCE[precision])
        for name, array in arrays.items()
        if not name.startswith(INPUTS) and name not in METADATA
    ]
    rows += [
        compare_arrays(
            f"{name} (.json)", np.asarray(value, float), ours.get(name), TOLERANCE[precision]
        )
        for name, value in _of_json(about).items()
    ]
    failed = [row["name"] for row in rows if not row["ok"]]
    inputs = [name for name in arrays if name.startswith(INPUTS)]
    return {
        "ok": not failed,
        "golden": str(golden),
        "precision": precision,
        "compared": len(rows),
        "inputs": inputs,
        "failed": failed,
        "arrays": rows,
        "text": table(rows, precision),
    }


def _of_json(about: dict) -> dict[str, object]:
    """The figures that the JSON records of the evaluation batch."""
    return {
        f"{direction}/{name}": value
        for direction in ("metrics_t2v", "metrics_v2t")
        for name, value in about.get(direction, {}).items()
        if name in ("R1", "R5", "R10", "R50", "MedianR", "MeanR")
    }

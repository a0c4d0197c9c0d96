"""The normalisation of pixels: weights trained with another mean and deviation than CLIP's.

LAION's ViT-L/14 on LAION-2B has 0.5 and 0.5. The model here always normalises with CLIP's; the
difference is a scale per channel and a constant per patch, which the weights can contain.
"""

from typing import Any, NamedTuple

import numpy as np

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.models.layers import PIXEL_MEAN, PIXEL_STD
from hvp_jax.weights.identity.beside import OPEN_CLIP_CONFIG, read_if_there, section


class Normalization(NamedTuple):
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def note(self) -> str:
        return (
            f"trained on pixels of mean {self.mean} and deviation {self.std}: folded into the "
            "patch and position embeddings, so that pixels normalised as CLIP's give the same"
        )


def read_normalization(folder: Path, format: str) -> Normalization | None:
    """What the files beside the weights say, if it is not CLIP's own. Raises DataError."""
    if format == "huggingface":
        path = folder / "preprocessor_config.json"
        config = read_if_there(path)
        if not config:  # newer versions of the library write both parts of a processor in one file
            path = folder / "processor_config.json"
            config = section(read_if_there(path), "image_processor")
        values = (config.get("image_mean"), config.get("image_std"))
    else:
        path = folder / OPEN_CLIP_CONFIG
        config = section(read_if_there(path), "preprocess_cfg")
        values = (config.get("mean"), config.get("std"))
    mean, std = (
        default if value is None else _numbers(path, value)
        for value, default in zip(values, (PIXEL_MEAN, PIXEL_STD), strict=True)
    )
    if min(std) <= 0:
        raise DataError(f"{path}: the deviation of pixels is {std}; it is above 0")
    if np.allclose((mean, std), (PIXEL_MEAN, PIXEL_STD), atol=1e-3):  # some files round them
        return None
    return Normalization(mean, std)


def _numbers(path: Path, value: Any) -> tuple[float, ...]:
    if isinstance(value, list) and len(value) == 3:
        if all(isinstance(x, int | float) and abs(x) < 1e6 for x in value):
            return tuple(map(float, value))
    raise DataError(f"{path}: {value!r} is not the mean or deviation of three channels")


def fold(params: dict[str, Any], normalization: Normalization) -> dict[str, Any]:
    """The parameters that give for CLIP's pixels what `params` give for those of their training.

    With x normalised as CLIP's, theirs are `x * scale + shift`. The kernel's rows are scaled; the
    shift adds the same vector to every patch, which its position embedding takes.
    """
    mean, std = np.array(normalization.mean), np.array(normalization.std)
    scale, shift = np.array(PIXEL_STD) / std, (np.array(PIXEL_MEAN) - mean) / std  # [3]
    visual = params["clip"]["visual"]
    rows = visual["patch_embedding"].astype(np.float64)  # [pixels 3, width]
    kernel = rows.reshape(-1, 3, rows.shape[-1])
    position = visual["position_embedding"].astype(np.float64)  # [1 + patches, width]
    position[1:] += (shift @ kernel).sum(axis=0)
    changed = {
        "patch_embedding": (kernel * scale[:, None]).reshape(rows.shape),
        "position_embedding": position,
    }
    changed = {name: x.astype(np.float32) for name, x in changed.items()}
    return {**params, "clip": {**params["clip"], "visual": {**visual, **changed}}}

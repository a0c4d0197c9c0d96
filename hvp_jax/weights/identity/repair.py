"""Tensors that are left out or made into CLIP's own before a checkpoint is matched."""

import math
from collections.abc import Callable

import numpy as np

from hvp_jax.weights.tensor_files import LazyTensors

FROM_SHAPES = "follows from the shapes of the tensors"
IGNORED = {  # last part of a tensor's name: why it is not needed
    "input_resolution": FROM_SHAPES,
    "context_length": FROM_SHAPES,
    "vocab_size": FROM_SHAPES,
    "position_ids": "the numbers 0, 1, 2 and so on",
    "attn_mask": "the causal mask, which is computed",
}
# Of open_clip's models for a sigmoid loss.
LOGIT_BIAS = "adds one number to all scores, which changes no ranking and no softmax"
LONG_POSITIONS = "positional_embedding_res"
LONG_KEPT = 20  # positions that Long-CLIP takes from the embedding it started from


def repaired(tensors: LazyTensors) -> tuple[LazyTensors, dict[str, str], list[str]]:
    """The tensors of CLIP and HVP-Net, those ignored with their reasons, and notes."""
    ignored, notes = {}, []
    for name in tensors:
        last, size = name.rpartition(".")[2], math.prod(tensors.shapes[name])
        if last in IGNORED:
            ignored[name] = IGNORED[last]
        elif last == "logit_bias" and size == 1:
            ignored[name] = LOGIT_BIAS
        elif last == "logit_scale" and size == 1 and tensors.shapes[name]:
            # FSDP cannot shard a scalar, so that its checkpoints hold [1].
            tensors = tensors.with_tensor(name, (), _scalar(tensors, name))
    tensors = tensors.without(ignored)
    name = "positional_embedding"
    shapes = [tensors.shapes.get(x, ()) for x in (name, LONG_POSITIONS)]
    if shapes[0] == shapes[1] and len(shapes[0]) == 2:
        merged = tensors.with_tensor(name, shapes[0], _long_positions(tensors, name))
        tensors = merged.without({LONG_POSITIONS})
        notes.append(f"Long-CLIP: {name} from position {LONG_KEPT} on is {LONG_POSITIONS}")
    return tensors, ignored, notes


def _scalar(tensors: LazyTensors, name: str) -> Callable[[], np.ndarray]:
    return lambda: tensors[name].reshape(())


def _long_positions(tensors: LazyTensors, name: str) -> Callable[[], np.ndarray]:
    return lambda: np.concatenate([tensors[name][:LONG_KEPT], tensors[LONG_POSITIONS][LONG_KEPT:]])

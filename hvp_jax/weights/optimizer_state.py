"""The optimizer state of an original HVP-Net checkpoint: its moments as trees of parameters."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from hvp_jax.weights import tensor_files, torch_params
from hvp_jax.weights.formats import TorchCheckpoint


class AdamMoments(NamedTuple):
    first: dict  # trees like the parameters
    second: dict
    steps: int  # updates done
    constants: dict  # of the optimizer: learning rates, schedule, betas


def read_adam_moments(source: TorchCheckpoint) -> AdamMoments | None:
    """The moments of a checkpoint, or None without an optimizer. Raises DataError on a mismatch.

    The optimizer numbers its tensors through four groups: those with weight decay, then those
    without (`bias` in the name); in each, CLIP's first. Within a group the order is that of the
    state dict.
    """
    optimizer = source.extras.get("optimizer")
    if not optimizer:
        return None
    shapes = source.tensors.shapes
    first: dict[str, np.ndarray] = {}
    second: dict[str, np.ndarray] = {}
    steps = 0
    try:
        groups, states = optimizer["param_groups"], optimizer["state"]
        indices = [index for group in groups for index in group["params"]]
        names = list(optimizer_order(list(shapes)))
        if len(indices) != len(names):
            raise DataError(
                f"{source.path}: its optimizer has {len(indices)} tensors, "
                f"its state_dict {len(names)}"
            )
        for index, name in zip(indices, names, strict=True):
            state = states.get(index)
            if state is None:  # frozen: it never had a gradient
                first[name] = np.zeros(shapes[name], np.float32)
                second[name] = np.zeros(shapes[name], np.float32)
                continue
            for moments, key in ((first, "next_m"), (second, "next_v")):
                moment = tensor_files.to_numpy(state.pop(key))
                # A logit_scale of shape [1] has been read as a scalar.
                moments[name] = (
                    moment.reshape(()) if (moment.size, shapes[name]) == (1, ()) else moment
                )
            steps = max(steps, int(state["step"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source.path}: its optimizer is not the original's ({error!r})") from None
    for name, moment in (*first.items(), *second.items()):
        if moment.shape != shapes[name]:
            raise DataError(f"{source.path}: a moment of {name} has shape {list(moment.shape)}")
    constants = {
        key: [group.get(key) for group in groups] if key == "lr" else groups[0].get(key)
        for key in ("lr", "warmup", "t_total", "weight_decay", "b1", "b2", "e", "max_grad_norm")
    }
    return AdamMoments(
        torch_params.from_torch(first, source.scheme),
        torch_params.from_torch(second, source.scheme),
        steps,
        constants,
    )


def optimizer_order(names: list[str]) -> Iterator[str]:
    """Names in the order of the state dict -> in the order of the optimizer's indices."""
    for decayed in (True, False):
        for in_clip in (True, False):
            for name in names:
                if ("bias" not in name) == decayed and ("clip." in name) == in_clip:
                    yield name

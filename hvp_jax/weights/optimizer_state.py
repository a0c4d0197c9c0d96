"""The optimizer of an original HVP-Net checkpoint: its moments under our names."""

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
    constants: dict  # of the optimizer: rates, schedule


def read_adam_moments(source: TorchCheckpoint) -> AdamMoments | None:
    """The moments of a checkpoint, if it has an optimizer. Raises DataError if they do not fit.

    The optimizer numbers its tensors through four groups: CLIP's and the others', first
    those that decay, then those with `bias` in the name, each in the order of the state dict.
    """
    optimizer = source.rest.get("optimizer")
    if not optimizer:
        return None
    try:
        groups, states = optimizer["param_groups"], optimizer["state"]
        numbers = [number for group in groups for number in group["params"]]
        first, second, steps = {}, {}, 0
        ordered = list(optimizer_order(list(source.tensors.shapes)))
        if len(numbers) != len(ordered):
            raise DataError(
                f"{source.path}: its optimizer has {len(numbers)} tensors, "
                f"its state_dict {len(ordered)}"
            )
        for number, name in zip(numbers, ordered, strict=True):
            state = states.get(number)
            if state is None:  # frozen: it never had a gradient
                shape = source.tensors.shapes[name]
                first[name], second[name] = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
                continue
            first[name], second[name] = (
                tensor_files.to_numpy(state.pop(key)) for key in ("next_m", "next_v")
            )
            steps = max(steps, int(state["step"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source.path}: its optimizer is not the original's ({error!r})") from None
    for name, moment in (*first.items(), *second.items()):
        if moment.shape != source.tensors.shapes[name]:
            raise DataError(f"{source.path}: a moment of {name} is of shape {list(moment.shape)}")
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


def optimizer_order(ordered: list[str]) -> Iterator[str]:
    """Names in the order of the state dict -> in the order of the optimizer's numbers."""
    for decays in (True, False):
        for of_clip in (True, False):
            for name in ordered:
                if ("bias" not in name) == decays and ("clip." in name) == of_clip:
                    yield name

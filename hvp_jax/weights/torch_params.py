"""PyTorch's tensors <-> the tree of parameters, by the rules of `param_mapping.py`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from data.errors import DataError
from hvp_jax.models.clip_config import Shape
from hvp_jax.weights.param_mapping import ORIGINAL, NamingScheme


class ParamSource(NamedTuple):
    """A parameter and the tensors it is made of."""

    path: str
    layers: tuple[tuple[str, ...], ...]  # names: of each layer if stacked, of each part ({qkv})
    layout: str  # of the tensors
    stacked: bool


_RANKS = {"linear": 2, "conv1d": 3, "patches": 4}  # of a tensor in PyTorch's layout


def _to_jax(x: np.ndarray, layout: str) -> np.ndarray:
    if layout == "linear":  # [out, in] -> [in, out]
        return x.T
    if layout == "conv1d":  # [out, in, kernel] -> [kernel, in, out]
        return x.transpose(2, 1, 0)
    if layout == "patches":  # [width, 3, p, p] -> [p p 3, width]
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
    return x


def _to_torch(x: np.ndarray, layout: str) -> np.ndarray:
    if layout == "linear":
        return x.T
    if layout == "conv1d":
        return x.transpose(2, 1, 0)
    if layout == "patches":
        side = round((x.shape[0] / 3) ** 0.5)
        return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return x


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.replace("{qkv}", x) for x in "qkv") if "{qkv}" in name else (name,)


def _layer_indices(template: str, names: Iterable[str]) -> list[int]:
    """The layers 0, 1, 2 ... of the stack that a rule's name belongs to, found in `names`."""
    stack = template.split("{i}")[0]
    pattern = re.compile(re.escape(stack) + r"(\d+)[./]")
    indices = sorted({int(m[1]) for m in map(pattern.match, names) if m})
    for expected, index in enumerate(indices):
        if index != expected:
            raise DataError(f"{stack}{expected}: this layer is missing from 0 to {indices[-1]}")
    return indices


def match_tensors(names: Iterable[str], scheme: NamingScheme = ORIGINAL) -> list[ParamSource]:
    """The tensors that make each parameter. DataError names one that is missing or unknown."""
    names = set(names)
    sources: list[ParamSource] = []
    used: set[str] = set()
    for path, template, layout in scheme.rules():
        indices = _layer_indices(template, names) if "{i}" in template else []
        layers = [_parts(template.replace("{i}", str(i))) for i in indices] or [_parts(template)]
        for name in (name for parts in layers for name in parts):
            if name not in names:
                raise DataError(f"{name}: not among the {len(names)} tensors of the checkpoint")
            used.add(name)
        if "{i}" in path:
            sources += [
                ParamSource(path.replace("{i}", str(i)), (parts,), layout, stacked=False)
                for i, parts in zip(indices, layers, strict=True)
            ]
        else:
            sources.append(ParamSource(path, tuple(layers), layout, stacked="{i}" in template))
    unknown = sorted(names - used)
    if unknown:
        others = f"; {len(unknown) - 1} more are unknown" if len(unknown) > 1 else ""
        raise DataError(f"{unknown[0]}: a tensor that such a checkpoint does not have{others}")
    return sources


def layer_shapes(source: ParamSource, shapes: Mapping[str, Shape]) -> list[Shape]:
    """The shape, in the layout here, of each layer of a parameter; tensors of a wrong rank none."""
    result = []
    for names in source.layers:
        shape = shapes[names[0]]
        if len(names) > 1 and shape:
            shape = (sum(shapes[name][0] for name in names if shapes[name]), *shape[1:])
        if len(shape) == _RANKS.get(source.layout, len(shape)):
            result.append(_to_jax(np.broadcast_to(np.float32(0), shape), source.layout).shape)
    return result


def torch_shape(shape: Shape, layout: str, parts: int = 1) -> Shape:
    """The shape in PyTorch of each of the `parts` tensors that make one layer of `shape`."""
    shape = _to_torch(np.broadcast_to(np.float32(0), shape), layout).shape
    return (shape[0] // parts, *shape[1:]) if parts > 1 else shape


def from_torch(state: Mapping[str, np.ndarray], scheme: NamingScheme = ORIGINAL) -> dict[str, Any]:
    """The tensors of a checkpoint -> the tree of parameters; each tensor is looked up once.

    Strict: raises DataError that names a missing or unknown tensor.
    """
    sources = match_tensors(state, scheme)
    return unflatten_dict({source.path: _fill(source, state) for source in sources}, sep="/")


def _fill(source: ParamSource, state: Mapping[str, np.ndarray]) -> np.ndarray:
    stack = None
    for i, names in enumerate(source.layers):
        # Layer by layer, so that no more than one layer is in memory twice.
        parts = [np.asarray(state[name]) for name in names]
        x = _to_jax(np.concatenate(parts) if len(parts) > 1 else parts[0], source.layout)
        if not source.stacked:
            return np.ascontiguousarray(x).reshape(x.shape)
        if stack is None:
            stack = np.empty((len(source.layers), *x.shape), x.dtype)
        stack[i] = x
    assert stack is not None  # a source has at least one layer
    return stack


def to_torch(params: Mapping[str, Any], scheme: NamingScheme = ORIGINAL) -> dict[str, np.ndarray]:
    """A tree (parameters, gradients or moments) -> PyTorch's names and layouts."""
    flat = {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}
    state: dict[str, np.ndarray] = {}
    for path, template, layout in scheme.rules():
        if "{i}" in path:
            layers = [flat[path.replace("{i}", str(i))] for i in _layer_indices(path, flat)]
        else:
            layers = list(flat[path]) if "{i}" in template else [flat[path]]
        for i, x in enumerate(layers):
            names, tensor = _parts(template.replace("{i}", str(i))), _to_torch(x, layout)
            tensors = np.split(tensor, len(names)) if len(names) > 1 else [tensor]
            state.update(zip(names, tensors, strict=True))
    return state

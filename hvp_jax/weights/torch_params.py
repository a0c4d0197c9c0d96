"""Tensors of PyTorch <-> our tree of parameters, by the table of `param_mapping.py`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from hvp_jax.weights.param_mapping import ORIGINAL, NamingScheme


class ParamSource(NamedTuple):
    """A parameter of ours, and the tensors it is made of: by layer if it is stacked, and part."""

    path: str
    layers: tuple[tuple[str, ...], ...]
    layout: str
    stacked: bool


_AXES = {"linear": 2, "conv1d": 3, "patches": 4}  # of a tensor there


def _to_ours(x: np.ndarray, layout: str) -> np.ndarray:
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


def _layers(name: str, names: Iterable[str]) -> list[int]:
    """The layers of the stack that a rule's name is in, by any tensor of it: 0, 1, 2 ..."""
    stack = name.split("{i}")[0]
    pattern = re.compile(re.escape(stack) + r"(\d+)[./]")
    layers = sorted({int(m[1]) for m in map(pattern.match, names) if m})
    for expected, layer in enumerate(layers):
        if layer != expected:
            raise DataError(f"{stack}{expected}: a layer that is missing, of 0 to {layers[-1]}")
    return layers


def match_tensors(names: Iterable[str], scheme: NamingScheme = ORIGINAL) -> list[ParamSource]:
    """Which tensors make each of our parameters; DataError names one too few or too many."""
    names = set(names)
    found, used = [], set()
    for path, name, layout in scheme.rules():
        layers = _layers(name, names) if "{i}" in name else [None]
        spelled = [_parts(name.replace("{i}", str(i))) for i in layers] or [_parts(name)]
        for tensor in (tensor for parts in spelled for tensor in parts):
            if tensor not in names:
                raise DataError(f"{tensor}: not among the {len(names)} tensors of the checkpoint")
            used.add(tensor)
        if "{i}" in path:
            found += [
                ParamSource(path.replace("{i}", str(i)), (parts,), layout, False)
                for i, parts in zip(layers, spelled, strict=True)
            ]
        else:
            found.append(ParamSource(path, tuple(spelled), layout, "{i}" in name))
    unknown = sorted(names - used)
    if unknown:
        more = f", nor {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise DataError(f"{unknown[0]}: a tensor that such a checkpoint does not have{more}")
    return found


def layer_shapes(
    place: ParamSource, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The shape, in our layout, of each layer of a parameter, from those of its tensors."""
    found = []
    for names in place.layers:
        shape = shapes[names[0]]
        if len(names) > 1 and shape:
            shape = (sum(shapes[name][0] for name in names if shapes[name]), *shape[1:])
        if len(shape) == _AXES.get(place.layout, len(shape)):
            found.append(_to_ours(np.broadcast_to(np.float32(0), shape), place.layout).shape)
    return found


def torch_shape(ours: tuple[int, ...], layout: str, parts: int = 1) -> tuple[int, ...]:
    """The shape there of each of the `parts` tensors that make one layer of ours."""
    shape = _to_torch(np.broadcast_to(np.float32(0), ours), layout).shape
    return (shape[0] // parts, *shape[1:]) if parts > 1 else shape


def from_torch(state: Mapping[str, np.ndarray], scheme: NamingScheme = ORIGINAL) -> dict:
    """The tensors of a checkpoint -> our tree of parameters, each tensor looked up once.

    Strict: raises DataError that names a tensor which is missing, unknown or, in a stack of
    layers, of another shape than the others.
    """
    return unflatten({place.path: _fill(place, state) for place in match_tensors(state, scheme)})


def _fill(place: ParamSource, state: Mapping[str, np.ndarray]) -> np.ndarray:
    stack = None
    for i, names in enumerate(place.layers):
        # Name by name, so that no more than one layer is in memory twice.
        parts = [np.asarray(state[name]) for name in names]
        x = _to_ours(np.concatenate(parts) if len(parts) > 1 else parts[0], place.layout)
        if not place.stacked:
            return np.ascontiguousarray(x).reshape(x.shape)
        if stack is None:
            stack = np.empty((len(place.layers), *x.shape), x.dtype)
        stack[i] = x
    return stack


def to_torch(params: Mapping, scheme: NamingScheme = ORIGINAL) -> dict[str, np.ndarray]:
    """Our tree (of parameters, gradients or moments) -> names and layouts of PyTorch."""
    flat = {path: np.asarray(x) for path, x in flatten(params).items()}
    state = {}
    for path, name, layout in scheme.rules():
        if "{i}" in path:
            layers = [flat[path.replace("{i}", str(i))] for i in _layers(path, flat)]
        else:
            layers = flat[path] if "{i}" in name else [flat[path]]
        for i, x in enumerate(layers):
            parts = _parts(name.replace("{i}", str(i)))
            pieces = np.split(_to_torch(x, layout), len(parts)) if len(parts) > 1 else None
            state.update(
                zip(parts, pieces, strict=True) if pieces else {parts[0]: _to_torch(x, layout)}
            )
    return state


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Nested dicts -> {"a/b/c": leaf}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """{"a/b/c": leaf} -> nested dicts."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree

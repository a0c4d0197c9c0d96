"""The manifest of a checkpoint: names, types, shapes and a checksum of every array.

Orbax and TensorStore do not detect every changed byte. A checksum is a wrap-around integer sum
over the array's bits, computed on the devices that hold a large array and by NumPy for a small
one. It depends neither on the order of summation nor on the sharding, and every process gets it.
"""

import json
import zlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.checkpoints import bucket

SMALL = 2**20  # elements: NumPy sums so few in less time than a device's program compiles
ITEM = "manifest"  # a JSON item of a checkpoint, beside the array items params and rest
# The names that earlier versions wrote.
OLD_ITEM = "seal"
OLD_KEYS = {"sums": "checksums", "figures": "metrics", "places": "iterator_states"}


class CorruptCheckpoint(DataError):
    """A checkpoint is incomplete or has changed since it was written; others may be intact."""


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """A checksum, uint32 [], of an array's bits [...] and their positions.

    One changed element always changes it; several, or a permutation, do so except with
    probability 2^-32.
    """
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # [..., 2] for 8-byte types
    position = jnp.zeros(bits.shape, jnp.uint32)  # the index in the flattened array
    for axis, size in enumerate(bits.shape):
        # One axis at a time, since flattening would gather an array that is sharded over devices.
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * np.uint32(size % 2**32) + index
    # A bijective mix (the finaliser of MurmurHash3), so that equal changes do not cancel out.
    h = bits + position * np.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def checksum_on_host(x: np.ndarray) -> int:
    """What `checksum` computes for an array [...], by NumPy."""
    word = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[x.dtype.itemsize]
    bits = np.frombuffer(x.tobytes(), word).astype(np.uint32)
    h = bits + np.arange(bits.size, dtype=np.uint32) * np.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return int(np.sum(h ^ (h >> 16), dtype=np.uint32))


def _named_leaves(tree: Any) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _structure(tree: Any) -> dict[str, list]:
    """Name -> [dtype, shape] of arrays or ShapeDtypeStructs."""
    return {name: [str(x.dtype), list(x.shape)] for name, x in _named_leaves(tree).items()}


def _checksums(tree: Any) -> dict[str, int]:
    cpu = jax.local_devices(backend="cpu")[0]

    def one(x: jax.Array | np.ndarray) -> int:
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        if whole and x.size <= SMALL:
            return checksum_on_host(np.asarray(x))
        if not isinstance(x, jax.Array):
            if x.dtype.itemsize == 8:  # the same bits: JAX may have no 8-byte types enabled
                x = np.frombuffer(x.tobytes(), np.uint32).reshape(*x.shape, 2)
            x = jax.device_put(x, cpu)
        return int(jax.device_get(checksum(x)))

    # One after the other: two programs with collectives across processes must not be in flight
    # together, since processes might start them in different orders.
    return {name: one(x) for name, x in _named_leaves(tree).items()}


def empty_like(recorded: dict[str, Any] | None, item: str, shapes: Any) -> Any:
    """Host arrays with the given shapes, of the types that a manifest records for an item."""
    types = recorded["arrays"][item] if recorded else {}

    def empty(path: tuple, x: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return np.empty(x.shape, types[name][0] if name in types else x.dtype)

    return jax.tree_util.tree_map_with_path(empty, shapes)


def _crc(body: Any) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def build(items: dict[str, Any], metrics: dict[str, Any] | None, iterator: bool) -> dict[str, Any]:
    """The manifest of a checkpoint with the array trees `items` and its validation `metrics`.

    `iterator`: whether the checkpoint holds the iterator state, one file per process.
    """
    body = {
        "arrays": {item: _structure(tree) for item, tree in items.items()},
        "checksums": {item: _checksums(tree) for item, tree in items.items()},
        "metrics": metrics,
        "iterator_states": jax.process_count() if iterator else 0,
    }
    return body | {"crc32": _crc(body)}


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest in a checkpoint's folder; None if it was written before there were any.

    Raises CorruptCheckpoint if it is missing or changed.
    """
    items = _written_items(folder)
    item = OLD_ITEM if OLD_ITEM in items or (folder / OLD_ITEM).exists() else ITEM
    file = Path(item) / "metadata"  # the name that Orbax gives the file of a JSON item
    try:
        body = _load(folder / file)
        if body.pop("crc32", None) == _crc(body):
            return {OLD_KEYS.get(key, key): value for key, value in body.items()}
        why = f"{file} has changed"
    except FileNotFoundError:
        if "params" in items and item not in items:
            return None
        why = f"{file} is missing"
    except (OSError, ValueError) as error:
        if bucket.fault(error, folder):
            raise  # the checkpoint itself may be intact
        why = f"{file} cannot be read: {error}"
    raise CorruptCheckpoint(f"{folder}: {why}")


def _load(path: Path) -> dict[str, Any]:
    value = json.loads(storage.read_bytes(path))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _written_items(folder: Path) -> dict[str, Any]:
    """The items that Orbax recorded, by name; empty if that record cannot be read."""
    try:
        return dict(_load(folder / "_CHECKPOINT_METADATA")["item_handlers"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_structure(manifest: dict[str, Any], items: dict[str, Any], folder: Path) -> None:
    """Raises DataError if the names, types or shapes of a step's arrays differ from `items`.

    Such a step is not damaged: it is of another model, as are the other steps of the run.
    """
    for item, tree in items.items():
        saved, expected = manifest["arrays"][item], _structure(tree)
        for name in sorted(saved.keys() | expected.keys()):
            if saved.get(name) != expected.get(name):
                raise DataError(
                    f"{folder} is not of the model that the config describes: {item}/{name} is "
                    f"{_format(saved.get(name))} in the checkpoint and "
                    f"{_format(expected.get(name))} in the model; use the run's own config or "
                    "another workdir"
                )


def _format(structure: list | None) -> str:
    return f"{structure[0]}{structure[1]}" if structure else "missing"


def verify(manifest: dict[str, Any], items: dict[str, Any], folder: Path) -> None:
    """Raises CorruptCheckpoint, naming the array, if an array differs from its checksum."""
    for item, tree in items.items():
        wrong = [
            name for name, x in _checksums(tree).items() if x != manifest["checksums"][item][name]
        ]
        if wrong:
            more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise CorruptCheckpoint(f"{folder}: {item}/{wrong[0]}{more} differs from its checksum")


class IteratorState:
    """An iterator's state with a checksum, as Grain's CheckpointSave asks for it."""

    def __init__(self, batches: grain.DatasetIterator):
        self._state = batches.get_state()

    def get_state(self) -> bytes:
        # The checksum is of what JSON reads back: no tuples, no numbers as keys.
        state = json.loads(json.dumps(self._state))
        return json.dumps({"state": state, "crc32": _crc(state)}, indent=1).encode()


def read_iterator_state(manifest: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """This process's iterator state, for `set_state`; None if the step has none.

    Raises CorruptCheckpoint if it is missing or changed, and UsageError if the step was written
    by another number of processes.
    """
    if not manifest["iterator_states"]:
        return None
    count = jax.process_count()
    if manifest["iterator_states"] != count:
        raise UsageError(
            f"{folder} was written by {manifest['iterator_states']} processes, and there are "
            f"{count}: resume with the same number, or start from its weights "
            "(--config.model.weights) in another workdir"
        )
    path = folder / "data" / f"process_{jax.process_index()}-of-{count}.json"
    try:
        saved = _load(path)
        if saved.get("crc32") == _crc(saved.get("state")):
            return saved["state"]
        why = "has changed"
    except FileNotFoundError:
        why = "is missing"
    except (OSError, ValueError) as error:
        if bucket.fault(error, folder):
            raise  # the checkpoint itself may be intact
        why = f"cannot be read: {error}"
    raise CorruptCheckpoint(f"{folder}: {path.relative_to(folder)} {why}")

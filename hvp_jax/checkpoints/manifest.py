"""The manifest of a checkpoint: names, types, shapes and a checksum of every array.

Orbax and TensorStore do not notice every changed byte. A checksum is a wrap-around sum of
integers over the array's bits, computed on the devices that hold the array. It depends neither
on the order of summation nor on the sharding, and every process gets it.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import DataError, UsageError

ITEM = "manifest"  # a JSON item of a checkpoint, beside the arrays' items params and rest
OLD_ITEM = "seal"  # its name before
OLD_KEYS = {"sums": "checksums", "figures": "metrics", "places": "iterator_states"}


class CorruptCheckpoint(DataError):
    """A checkpoint was written in part, or has changed since; the one before it may be whole."""


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
    """A checksum, uint32 [], of an array's bits [...] and their places.

    One changed element always changes it, several or a permutation all but once in 2^32.
    """
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # [..., 2] of 8 bytes
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        # By axes, since flattening would gather an array that is split over devices.
        step = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place * np.uint32(size % 2**32) + step
    # Mixed one to one (the finaliser of MurmurHash3), that equal changes do not cancel out.
    h = bits + place * np.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def _named(tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _structure(tree) -> dict[str, list]:
    """Name -> [dtype, shape] of arrays or of their shapes."""
    return {name: [str(x.dtype), list(x.shape)] for name, x in _named(tree).items()}


def _checksums(tree) -> dict[str, int]:
    cpu = jax.local_devices(backend="cpu")[0]

    def start(x) -> jax.Array:
        return checksum(jax.device_put(x, cpu) if isinstance(x, np.ndarray) else x)

    # One after the other: two programs with collectives over processes must not run at the same
    # time, since each process might start them in another order.
    return {name: int(jax.device_get(start(x))) for name, x in _named(tree).items()}


def _crc(body) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def build(items: dict, metrics: dict | None, iterator: bool) -> dict:
    """The manifest of a checkpoint with trees of arrays `items` and its validation `metrics`.

    `iterator`: whether it holds the state of the data iterator, a file per process.
    """
    body = {
        "arrays": {item: _structure(tree) for item, tree in items.items()},
        "checksums": {item: _checksums(tree) for item, tree in items.items()},
        "metrics": metrics,
        "iterator_states": jax.process_count() if iterator else 0,
    }
    return body | {"crc32": _crc(body)}


def read(folder: Path) -> dict | None:
    """The manifest in a checkpoint's folder; None where it was written before there were any.

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
        why = f"{file} cannot be read: {error}"
    raise CorruptCheckpoint(f"{folder}: {why}")


def _load(path: Path) -> dict:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _written_items(folder: Path) -> dict:
    """The items that Orbax wrote, by name; empty if its record of them cannot be read."""
    try:
        return dict(_load(folder / "_CHECKPOINT_METADATA")["item_handlers"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_structure(manifest: dict, items: dict, folder: Path) -> None:
    """Raises DataError if a step is of arrays of other names, types or shapes than `items`.

    Such a step is whole; it is of another model, and no other step of the run fits better.
    """
    for item, tree in items.items():
        there, here = manifest["arrays"][item], _structure(tree)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise DataError(
                    f"{folder} is not of the model that the config describes: {item}/{name} is "
                    f"{_spell(there.get(name))} there and {_spell(here.get(name))} in the model; "
                    "use the run's own config, or another workdir"
                )


def _spell(outline: list | None) -> str:
    return f"{outline[0]}{outline[1]}" if outline else "missing"


def verify(manifest: dict, items: dict, folder: Path) -> None:
    """Raises CorruptCheckpoint, naming the array, if an array differs from its checksum."""
    for item, tree in items.items():
        wrong = [
            name for name, x in _checksums(tree).items() if x != manifest["checksums"][item][name]
        ]
        if wrong:
            more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise CorruptCheckpoint(f"{folder}: {item}/{wrong[0]}{more} differs from its checksum")


class IteratorState:
    """An iterator's place in the data with its checksum, for Grain to write: `get_state`."""

    def __init__(self, batches):
        self._state = batches.get_state()

    def get_state(self) -> bytes:
        # Spelled as it will be read, without tuples and numbers for keys.
        state = json.loads(json.dumps(self._state))
        return json.dumps({"state": state, "crc32": _crc(state)}, indent=1).encode()


def read_iterator_state(manifest: dict, folder: Path) -> dict | None:
    """This process's place in the data, for `set_state`; None where the step has none.

    Raises CorruptCheckpoint if it is missing or changed, and UsageError if the step was written by
    another number of processes.
    """
    if not manifest["iterator_states"]:
        return None
    count = jax.process_count()
    if manifest["iterator_states"] != count:
        raise UsageError(
            f"{folder} was written by {manifest['iterator_states']} processes, and there are "
            f"{count}: go on with as many, or begin from its weights (--config.model.weights) in "
            "another workdir"
        )
    path = folder / "data" / f"process_{jax.process_index()}-of-{count}.json"
    try:
        found = _load(path)
        if found.get("crc32") == _crc(found.get("state")):
            return found["state"]
        why = "has changed"
    except FileNotFoundError:
        why = "is missing"
    except (OSError, ValueError) as error:
        why = f"cannot be read: {error}"
    raise CorruptCheckpoint(f"{folder}: {path.relative_to(folder)} {why}")

"""What tells that a checkpoint is whole: a checksum of every array, kept beside them.

Orbax and TensorStore do not notice every changed byte. The sums are of the arrays' bits,
taken where the arrays are: wrap-around sums of integers, so that neither the order nor
how an array lies over devices and processes matters, and all processes have them.
"""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import BadData, BadUse

ITEM = "seal"  # of a step, a JSON object; the arrays' items are params and rest
FILE = Path(ITEM) / "metadata"  # the name that Orbax gives the file of such an item


class Damaged(BadData):
    """A step is half-written or changed since; the one before it may be whole."""


@jax.jit
def bit_sum(x: jax.Array) -> jax.Array:
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


def _outline(tree) -> dict[str, list]:
    """Name -> [dtype, shape] of arrays or of their shapes."""
    return {name: [str(x.dtype), list(x.shape)] for name, x in _named(tree).items()}


def _sums(tree) -> dict[str, int]:
    cpu = jax.local_devices(backend="cpu")[0]

    def start(x) -> jax.Array:
        return bit_sum(jax.device_put(x, cpu) if isinstance(x, np.ndarray) else x)

    # One after the other: programs that add up over processes must not run side by side, where
    # each process might take them up in another order.
    return {name: int(jax.device_get(start(x))) for name, x in _named(tree).items()}


def _crc(body) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def make(items: dict, figures: dict | None, place: bool) -> dict:
    """The seal of a step: `items` are trees of arrays, `figures` those it was evaluated with.

    `place`: whether the step holds a place in the data, a file of each process.
    """
    body = {
        "arrays": {item: _outline(tree) for item, tree in items.items()},
        "sums": {item: _sums(tree) for item, tree in items.items()},
        "figures": figures,
        "places": jax.process_count() if place else 0,
    }
    return body | {"crc32": _crc(body)}


def read(folder: Path) -> dict | None:
    """The seal in a step's folder; None of a step of the time before there were seals.

    Raises Damaged if it is missing or changed.
    """
    try:
        body = _load(folder / FILE)
        if body.pop("crc32", None) == _crc(body):
            return body
        why = f"{FILE} has changed"
    except FileNotFoundError:
        if _never_sealed(folder):
            return None
        why = f"{FILE} is missing"
    except (OSError, ValueError) as error:
        why = f"{FILE} cannot be read: {error}"
    raise Damaged(f"{folder}: {why}")


def _load(path: Path) -> dict:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _never_sealed(folder: Path) -> bool:
    try:
        items = _load(folder / "_CHECKPOINT_METADATA")["item_handlers"]
        return "params" in items and ITEM not in items
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_fit(seal: dict, items: dict, folder: Path) -> None:
    """Raises BadData if a step is of arrays of other names, types or shapes than `items`.

    Such a step is whole; it is of another model, and no other step of the run fits better.
    """
    for item, tree in items.items():
        there, here = seal["arrays"][item], _outline(tree)
        for name in sorted(there.keys() | here.keys()):
            if there.get(name) != here.get(name):
                raise BadData(
                    f"{folder} is not of the model that the config describes: {item}/{name} is "
                    f"{_spell(there.get(name))} there and {_spell(here.get(name))} in the model; "
                    "use the run's own config, or another workdir"
                )


def _spell(outline: list | None) -> str:
    return f"{outline[0]}{outline[1]}" if outline else "missing"


def check(seal: dict, items: dict, folder: Path) -> None:
    """Raises Damaged, naming the array, if arrays read are not those that were written."""
    for item, tree in items.items():
        wrong = [name for name, x in _sums(tree).items() if x != seal["sums"][item][name]]
        if wrong:
            more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
            raise Damaged(f"{folder}: {item}/{wrong[0]}{more} differs from its checksum")


class Place:
    """An iterator's place in the data with its checksum, for Grain to write: `get_state`."""

    def __init__(self, batches):
        self._state = batches.get_state()

    def get_state(self) -> bytes:
        # Spelled as it will be read, without tuples and numbers for keys.
        state = json.loads(json.dumps(self._state))
        return json.dumps({"state": state, "crc32": _crc(state)}, indent=1).encode()


def read_place(seal: dict, folder: Path) -> dict | None:
    """This process's place in the data, for `set_state`; None where the step has none.

    Raises Damaged if it is missing or changed, and BadUse if the step was written by
    another number of processes.
    """
    if not seal["places"]:
        return None
    count = jax.process_count()
    if seal["places"] != count:
        raise BadUse(
            f"{folder} was written by {seal['places']} processes, and there are {count}: go on "
            "with as many, or begin from its weights (--config.model.weights) in another workdir"
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
    raise Damaged(f"{folder}: {path.relative_to(folder)} {why}")

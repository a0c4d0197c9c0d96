"""States over eight devices, places in data, and ways to damage what is saved of them."""

import json

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hvp_jax.training.train_state import create_train_state

MESH = Mesh(np.array(jax.devices()), ("batch",))
SPLIT, WHOLE = (NamedSharding(MESH, PartitionSpec(*axes)) for axes in (("batch",), ()))


def state_of(seed, width=256):
    """The items of a state whose larger arrays lie split over eight devices."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal(16).astype(jnp.bfloat16)
    params = {"clip": {"w": rng.standard_normal((64, width), np.float32), "half": half}}
    state = create_train_state(params | {"scale": np.float32(seed)}, optax.adam(1e-3)).items()
    return jax.device_put(state, jax.tree.map(lambda x: SPLIT if np.ndim(x) else WHOLE, state))


def batches_at(step):
    batches = iter(grain.MapDataset.range(1000).seed(3).shuffle().to_iter_dataset())
    for _ in range(step):
        next(batches)
    return batches


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def values(item, process=0):
    """The file of an item that holds the larger arrays' values."""
    parts = item.glob(f"ocdbt.process_{process}/d/*")
    return max(parts, key=lambda path: path.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def count_on(path):
    """Another valid place in the data."""
    found = json.loads(path.read_text())
    found["state"]["next_index"] += 1
    path.write_text(json.dumps(found))

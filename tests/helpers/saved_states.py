"""States sharded over eight devices, data iterators, and ways to alter saved checkpoints."""

import json
import zlib
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hvp_jax.training.train_state import create_train_state

MESH = Mesh(np.array(jax.devices()), ("batch",))
SHARDED, REPLICATED = (NamedSharding(MESH, PartitionSpec(*axes)) for axes in (("batch",), ()))


def state_of(seed: int, width: int = 256, arrays: int = 1) -> dict[str, Any]:
    """The items of a state whose arrays, but for scalars, are sharded over eight devices."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal(16).astype(jnp.bfloat16)
    params = {"clip": {"w": rng.standard_normal((64, width), np.float32), "half": half}}
    for i in range(1, arrays):
        params["clip"][f"w{i}"] = rng.standard_normal((64, width), np.float32)
    state = create_train_state(params | {"scale": np.float32(seed)}, optax.adam(1e-3)).items()
    return jax.device_put(
        state, jax.tree.map(lambda x: SHARDED if np.ndim(x) else REPLICATED, state)
    )


def batches_at(step: int) -> grain.DatasetIterator:
    batches = iter(grain.MapDataset.range(1000).seed(3).shuffle().to_iter_dataset())
    for _ in range(step):
        next(batches)
    return batches


def same(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure, types and values."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def steps_of(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def values_file(item: Path, process: int = 0) -> Path:
    """The file of a checkpoint item that holds the values of its larger arrays."""
    parts = item.glob(f"ocdbt.process_{process}/d/*")
    return max(parts, key=lambda path: path.stat().st_size)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def advance_iterator_state(path: Path) -> None:
    """Changes a saved iterator state to another valid one, without updating its checksum."""
    saved = json.loads(path.read_text())
    saved["state"]["next_index"] += 1
    path.write_text(json.dumps(saved))


def rewrite_as_old(step: Path) -> None:
    """Gives a step's folder the names of earlier versions: item `seal` with its old keys."""
    (step / "manifest").rename(step / "seal")
    file = step / "seal" / "metadata"
    body = json.loads(file.read_text())
    del body["crc32"]
    old_keys = {"checksums": "sums", "metrics": "figures", "iterator_states": "places"}
    body = {old_keys.get(key, key): value for key, value in body.items()}
    crc = zlib.crc32(json.dumps(body, sort_keys=True).encode())
    file.write_text(json.dumps(body | {"crc32": crc}))
    file = step / "_CHECKPOINT_METADATA"
    record = json.loads(file.read_text())
    record["item_handlers"]["seal"] = record["item_handlers"].pop("manifest")
    file.write_text(json.dumps(record))


def metrics(t2v_r1, rank=5.0, split="val"):
    """Metrics of a validation, as a checkpoint's manifest records them."""
    direction = {"R@1": t2v_r1, "R@5": 50.0, "R@10": 60.0, "R@50": 90.0, "MdR": rank, "MnR": rank}
    return {"split": split, "text_to_video": direction, "video_to_text": direction}

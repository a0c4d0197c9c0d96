"""Sharding of states and batches, and compiled evaluation functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import UsageError
from hvp_jax.parallel import sharding
from hvp_jax.parallel.partitioner import Partitioner
from tests.helpers.small import normal


def test_shard_axis():
    assert sharding.shard_axis((12, 768, 3072), 8) == 2
    assert sharding.shard_axis((12, 3072, 768), 8) == 1
    assert sharding.shard_axis((12, 768, 768), 8) == 1  # the first of equals
    assert sharding.shard_axis((49408, 512), 16) == 0
    assert sharding.shard_axis((50, 768), 16) == 1  # 16 does not divide 50
    assert sharding.shard_axis((768,), 8) == sharding.shard_axis((101, 999), 8) == -1
    assert sharding.shard_axis((12, 768, 3072), 1) == -1


@pytest.mark.parametrize(
    ("kind", "fsdp", "devices"), [("pmap", False, 1), ("pmap", False, 8), ("shard_map", True, 8)]
)
def test_shard_state_makes_a_copy(kind, fsdp, devices):
    partitioner = Partitioner(kind, fsdp, jax.devices()[:devices])
    source = {"a": jnp.arange(3.0), "b": np.ones(4096)}
    state = partitioner.shard_state(source)
    donate = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    jax.block_until_ready(donate(state))
    assert source["a"].tolist() == [0, 1, 2] and (source["b"] == 1).all()


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_eval_functions_map_rows_to_host_arrays(kind):
    partitioner = Partitioner(kind)
    double = partitioner.compile_eval_fn(lambda params, batch: {"y": batch["x"] * params["by"]})
    x = np.float32(normal(0, 16, 3))
    result = double(
        partitioner.replicate_params(partitioner.shard_state({"by": np.float32(2)})), {"x": x}
    )
    assert isinstance(result["y"], np.ndarray)
    np.testing.assert_array_equal(result["y"], 2 * x)


def test_a_batch_size_that_the_devices_do_not_divide_is_refused():
    partitioner = Partitioner("pmap")
    partitioner.check_batch_size(32, "train.batch_size")
    with pytest.raises(UsageError) as error:
        partitioner.check_batch_size(12, "train.batch_size")
    assert str(error.value) == (
        "train.batch_size=12 does not divide over 8 devices; use a multiple of 8"
    )


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
@pytest.mark.parametrize("devices", [1, 2])
def test_one_device_reduces_nothing(kind, devices):
    """A reduction over one device would copy every gradient."""
    partitioner = Partitioner(kind, devices=jax.devices()[:devices])
    state = partitioner.shard_state({"x": jnp.ones(4)})

    def step(state, batch, collectives):
        return collectives.mean_gradients({"x": state["x"] * batch.sum()}), {}

    compiled = partitioner.compile_train_step(step, state)
    batch = partitioner.shard_batch(np.ones((2, 4), np.float32))
    text = compiled.lower(state, batch).compile().as_text()
    assert ("all-reduce" in text) == (devices > 1)

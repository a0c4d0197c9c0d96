"""Memory of the loss: all variants compute the same loss, with the expected memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from configs.base import get_config
from hvp_jax.bench import memory
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, l2_normalize
from hvp_jax.monitoring.json_files import to_json_types
from hvp_jax.parallel.partitioner import AXIS
from hvp_jax.training import train_step
from tests.helpers.command import run_command
from tests.helpers.small import SIZES, normal

pytestmark = pytest.mark.usefixtures("quick_compile")

MODEL = HVPNet(clip_config=SIZES, taps=(1, 3))


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(memory.some_devices()), (AXIS,), axis_types=(AxisType.Auto,))


def random_features(batch):
    """Random features of the shapes that the encoders produce."""
    text, video, log_scale = memory.feature_shapes(MODEL, batch, 2, 4)
    leaves, tree = jax.tree.flatten((text, video))
    values = [
        np.asarray(l2_normalize(normal(i, *x.shape)), np.float32) for i, x in enumerate(leaves)
    ]
    return *jax.tree.unflatten(tree, values), np.full(log_scale.shape, 2.0, np.float32)


def test_feature_shapes_are_those_of_the_encoders():
    text, video, log_scale = memory.feature_shapes(MODEL, 16, 2, 4)
    assert (
        isinstance(text, TextFeatures)
        and isinstance(video, VideoFeatures)
        and log_scale.shape == ()
    )
    assert text.words.shape == (16, 4, 32)
    assert video.patches.shape == (16, 2, 2, 32)  # 2 frames of 5 tokens, halved three times


@pytest.mark.parametrize("way", [2, "naive", "original"])
def test_every_variant_computes_the_loss_of_the_global_batch(way, mesh):
    inputs = random_features(16)

    def expected(text, video, log_scale):
        return train_step.loss_from_features(text, video, log_scale, dtype=jnp.float32)[0]

    loss, gradients = jax.jit(jax.value_and_grad(expected, argnums=(0, 1, 2)))(*inputs)
    actual, actual_gradients = memory.loss_and_grad(way, False, jnp.float32, mesh)(*inputs)
    np.testing.assert_allclose(actual, loss, rtol=1e-5)
    # The gradient of a gather sums over the eight devices, which all have the same loss.
    for (_, x), y in zip(
        jax.tree.leaves_with_path(actual_gradients[:2]), jax.tree.leaves(gradients[:2]), strict=True
    ):
        np.testing.assert_allclose(x / 8, y, atol=1e-6)


def test_memory_of_chunked_is_below_naive_and_naive_below_original(mesh):
    shapes = memory.shard_shapes(memory.feature_shapes(MODEL, 256, 8, 24), mesh)
    chunked, naive, original = (
        memory.temp_bytes(memory.loss_and_grad(way, False, jnp.float32, mesh), shapes)
        for way in (2, "naive", "original")
    )
    # 2 taps, 256 texts of 24 words, 32 clips of this device with 5 tokens, float32
    assert naive > 2 * 256 * 24 * 32 * 5 * 4
    assert chunked < naive / 2
    assert original > 4 * naive


def test_table_has_every_batch_size_and_variant(monkeypatch):
    monkeypatch.setattr(memory, "BATCHES", (16, 24))
    monkeypatch.setattr(memory, "TIMED", 16)
    monkeypatch.setattr(memory, "CHUNKS", (2,))
    config = get_config()
    config.similarity.chunk_size = 3
    config.data.max_frames, config.data.max_words = 1, 4
    result = memory.bench_memory(config, MODEL)
    ways = ["chunk 2", "chunk 3", "naive", "original"]
    assert {batch: list(row) for batch, row in result.temporary_mib.items()} == {
        16: ways,
        24: ways,
    }
    assert result.time_over_naive.keys() == {"chunk 2", "chunk 3", "naive"}
    assert all(value > 0 for value in result.ms.values())
    assert "| 24 | " in result.text and "MiB" in result.text
    assert list(to_json_types(result)) == [
        *("bench", "variant", "precision", "devices"),
        *("temporary_MiB", "ms", "ms_batch_size", "time_over_naive", "repeats"),
    ]


def test_eight_devices_are_simulated_on_a_cpu():
    code = (
        "from hvp_jax.bench import memory as m; from hvp_jax.parallel import simulated as s; "
        "s.simulate_devices(8); print(len(m.some_devices()))"
    )
    done = run_command("-c", code)
    assert done.stdout.strip() == "8", done.stderr

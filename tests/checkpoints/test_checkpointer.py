"""Checkpoints: damaged ones are skipped, the right ones kept, and old formats read."""

import asyncio
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.errors import DataError, UsageError
from hvp_jax.checkpoints import manifest
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.checkpoints.event_loop import await_pending_tasks
from hvp_jax.config.precision import cast_params
from tests.helpers.saved_states import (
    MESH,
    SHARDED,
    advance_iterator_state,
    batches_at,
    flip_bit,
    metrics,
    rewrite_as_old,
    same,
    state_of,
    steps_of,
    values_file,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpointer(workdir, max_to_keep=3) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), batches_at(step))
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_a_checksum_depends_on_every_bit_and_its_position_but_not_on_the_sharding():
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    total = int(manifest.checksum(x))
    assert manifest.checksum_on_host(x) == total
    assert int(manifest.checksum(jax.device_put(x, SHARDED))) == total
    columns = NamedSharding(MESH, PartitionSpec(None, "batch"))
    assert int(manifest.checksum(jax.device_put(x, columns))) == total
    for position in ((0, 0), (63, 1023), (7, 100)):
        for bit in (0, 17, 31):
            other = x.copy()
            other.view(np.uint32)[position] ^= np.uint32(1 << bit)
            assert int(manifest.checksum(other)) != total
    swapped = x.copy()
    swapped[[0, 32]] = x[[32, 0]]  # 32,768 elements apart
    for other in (swapped, x[::-1], x.reshape(1024, 64).T.reshape(64, 1024), 0 * x, x + 0 * x[:1]):
        assert (int(manifest.checksum(other)) == total) == np.array_equal(other, x)
    zeros = np.zeros(8, np.float32)
    assert int(manifest.checksum(zeros)) != int(manifest.checksum(-zeros))
    for dtype in (bool, np.int8, jnp.bfloat16, np.int32):
        bits = np.array([0, 1, 1, 0, 1], dtype)
        assert int(manifest.checksum(bits)) != int(manifest.checksum(bits[::-1]))
        assert int(manifest.checksum(bits)) == manifest.checksum_on_host(bits)
    wide = np.array([[2**40, -3, 0]])  # 8 bytes count as two numbers of 4
    halves = np.frombuffer(wide.tobytes(), np.uint32).reshape(1, 3, 2)
    assert manifest.checksum_on_host(wide) == int(manifest.checksum(halves))


def test_the_newest_state_is_restored_with_its_iterator_state(run):
    warnings, batches = [], batches_at(0)
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, warnings.append)
    assert step == 20 and same(state, state_of(20)) and not warnings
    assert state["params"]["clip"]["w"].sharding == SHARDED
    assert [next(batches) for _ in range(3)] == [next(x) for x in [batches_at(20)] * 3]
    assert not (run / "damaged").exists()


def test_without_checkpoints_the_result_is_none(tmp_path):
    with Checkpointer(tmp_path / "new", max_to_keep=3) as checkpoints:
        assert checkpoints.restore_latest(state_of(0), batches_at(0), print) is None
        assert checkpoints.latest() is None and checkpoints.select_step() is None
    assert not (tmp_path / "new").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "value": (
        lambda step: flip_bit(values_file(step / "params")),
        "clip/w differs from its checksum",
    ),
    "short": (lambda step: truncate(values_file(step / "params")), "params cannot be read"),
    "index": (lambda step: truncate(step / "rest" / "manifest.ocdbt"), "rest cannot be read"),
    "shapes": (lambda step: (step / "rest" / "_METADATA").unlink(), "rest cannot be read"),
    "moments": (lambda step: shutil.rmtree(step / "rest"), "rest cannot be read"),
    "iterator state": (
        lambda step: advance_iterator_state(step / "data" / "process_0-of-1.json"),
        "json has changed",
    ),
    "no iterator state": (lambda step: shutil.rmtree(step / "data"), "json is missing"),
    "manifest": (lambda step: flip_bit(step / "manifest/metadata"), "manifest/metadata"),
    "no manifest": (lambda step: shutil.rmtree(step / "manifest"), "manifest/metadata is missing"),
    "empty": (lambda step: (shutil.rmtree(step), step.mkdir()), "manifest/metadata is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_skipped_and_can_be_written_again(run, kind, capfd):
    damage, reason = DAMAGE[kind]
    damage(run / "checkpoints" / "20")
    warnings, batches = [], batches_at(0)
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, warnings.append)
        assert step == 10 and same(state, state_of(10)) and next(batches) == next(batches_at(10))
        assert (
            reason in warnings[0]
            and f"{run}/checkpoints/20" in warnings[0]
            and "step 10" in warnings[0]
        )
        assert all(line.startswith("warning: ") and "\n" not in line for line in warnings)
        assert steps_of(run) == [10] and (run / "damaged" / "20").is_dir()
        checkpoints.save(20, state_of(21), batches_at(20))
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, warnings.append)
    assert step == 20 and same(state, state_of(21))
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_among_many_arrays_prints_no_traceback(tmp_path, capfd):
    """TensorStore prints one for each pending read whose event loop is closed."""
    with Checkpointer(tmp_path, max_to_keep=3) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step, arrays=40), batches_at(step))
    for path in (tmp_path / "checkpoints" / "20" / "params").glob("**/d/*"):
        truncate(path)
    with Checkpointer(tmp_path, max_to_keep=3) as checkpoints:
        restored = checkpoints.restore_latest(state_of(0, arrays=40), batches_at(0), print)
    assert restored[1] == 10 and capfd.readouterr().err == ""


def test_an_event_loop_awaits_pending_tasks_before_it_closes():
    """Such as Orbax's, which are still reading when another one fails."""
    ended = []

    async def read():
        await asyncio.sleep(0.05)
        ended.append("read")
        raise OSError("second")

    async def fail():
        raise OSError("first")

    async def both():
        await asyncio.gather(read(), fail())

    with await_pending_tasks():
        loop = asyncio.new_event_loop()
        with pytest.raises(OSError, match="first"):
            loop.run_until_complete(both())
        assert not ended
        loop.close()
        assert ended == ["read"] and loop.is_closed()
    default = asyncio.new_event_loop()
    assert type(default) is not type(loop)
    default.close()


def test_a_step_with_the_names_of_earlier_versions_is_restored(tmp_path):
    with Checkpointer(tmp_path, max_to_keep=3) as checkpoints:
        checkpoints.save(10, state_of(10), batches_at(10), metrics(40.0))
    step = tmp_path / "checkpoints" / "10"
    expected = manifest.read(step)
    rewrite_as_old(step)
    assert json.loads((step / "seal" / "metadata").read_bytes()).keys() == {
        *("arrays", "sums", "figures", "places", "crc32")
    }
    assert manifest.read(step) == expected
    warnings, batches = [], batches_at(0)
    with Checkpointer(tmp_path, max_to_keep=3) as checkpoints:
        state, number = checkpoints.restore_latest(state_of(0), batches, warnings.append)
        assert number == 10 and same(state, state_of(10)) and not warnings
        assert next(batches) == next(batches_at(10))
        shapes = jax.eval_shape(lambda: state_of(0)["params"])
        assert same(checkpoints.params(10, shapes), state_of(10)["params"])
        assert checkpoints.select_step() == {
            **{"step": 10, "chosen_on": "val", "chosen_by": "rsum", "rsum": 300.0},
        }


@pytest.mark.parametrize("damage", [flip_bit, Path.unlink])
def test_a_damaged_step_of_an_earlier_version_is_skipped(run, damage):
    rewrite_as_old(run / "checkpoints" / "20")
    damage(run / "checkpoints" / "20" / "seal" / "metadata")
    warnings = []
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        assert checkpoints.restore_latest(state_of(0), batches_at(0), warnings.append)[1] == 10
    assert "seal/metadata" in warnings[0]


def test_if_no_step_is_intact_none_is_moved(run):
    for step in (10, 20):
        truncate(run / "checkpoints" / str(step) / "manifest/metadata")
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        with pytest.raises(DataError, match="no other step in .*checkpoints is intact: put a copy"):
            checkpoints.restore_latest(state_of(0), batches_at(0), print)
    assert steps_of(run) == [10, 20] and not (run / "damaged").exists()


def test_a_checkpoint_of_another_model_is_an_error_but_not_damage(run):
    warnings, shapes = [], jax.eval_shape(lambda: state_of(0, width=40)["params"])
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        with pytest.raises(
            DataError, match=r"w is float32\[64, 256\] in the checkpoint and float32\[64, 40"
        ):
            checkpoints.restore_latest(state_of(0, width=40), batches_at(0), warnings.append)
        with pytest.raises(DataError, match="checkpoints/10 is not of the model"):
            checkpoints.params(10, shapes)
    assert not warnings and steps_of(run) == [10, 20]


def test_another_number_of_processes_is_refused(tmp_path):
    with pytest.raises(UsageError, match="written by 4 processes, and there are 1"):
        manifest.read_iterator_state({"iterator_states": 4}, tmp_path)


def test_parameters_for_scoring_are_verified(run):
    shapes = jax.eval_shape(lambda: state_of(0)["params"])
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        params = checkpoints.params(20, shapes)
        assert same(params, state_of(20)["params"]) and isinstance(params["clip"]["w"], np.ndarray)
        shutil.rmtree(run / "checkpoints" / "20" / "rest")  # which scoring does not read
        assert same(checkpoints.params(20, shapes), params)
        flip_bit(values_file(run / "checkpoints" / "20" / "params"))
        with pytest.raises(DataError, match="checkpoints/20: params/clip/w differs"):
            checkpoints.params(20, shapes)


def test_float64_parameters_are_read_where_float64_is_not_enabled(tmp_path):
    """As when a float32 run starts from the weights of a float64 run."""
    values = {"w": np.random.default_rng(0).standard_normal((64, 256)), "scale": np.float64(1 / 3)}
    with jax.enable_x64(True):
        items = {"params": jax.tree.map(jnp.asarray, values), "rest": {"step": jnp.int32(1)}}
        with Checkpointer(tmp_path, max_to_keep=1) as checkpoints:
            checkpoints.save(1, items, batches_at(1))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.float32), values)
    with Checkpointer(tmp_path, max_to_keep=1) as checkpoints:
        params = checkpoints.params(1, shapes)
        assert same(params, jax.tree.map(np.asarray, values))
        cast = cast_params(params, jnp.bfloat16)
        assert {x.dtype for x in jax.tree.leaves(cast)} == {jnp.dtype("float32")}
        flip_bit(values_file(tmp_path / "checkpoints" / "1" / "params"))
        with pytest.raises(DataError, match="checkpoints/1: params/w differs"):
            checkpoints.params(1, shapes)


def test_partial_checkpoints_of_a_killed_run_are_removed(run):
    partial = run / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "20", partial)
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        assert partial.exists()  # another process may be writing it, until a run resumes here
        assert checkpoints.restore_latest(state_of(0), batches_at(0), print)[1] == 20
    assert steps_of(run) == [10, 20]

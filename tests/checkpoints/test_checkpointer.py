"""Checkpoints: damaged ones are passed over, the right ones kept, a full disk is one line."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from data.errors import DataError, UsageError
from hvp_jax.checkpoints import manifest
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.config import schema
from tests.helpers.saved_states import (
    MESH,
    SPLIT,
    batches_at,
    count_on,
    flip,
    same,
    state_of,
    steps_of,
    values,
)


def figures(t2v, rank=5.0, split="val"):
    way = {"R@1": t2v, "R@5": 50.0, "R@10": 60.0, "R@50": 90.0, "MdR": rank, "MnR": rank}
    return {"split": split, "text_to_video": way, "video_to_text": way}


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


def test_a_checksum_is_of_every_bit_and_its_place_but_not_of_the_layout():
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    total = int(manifest.checksum(x))
    assert int(manifest.checksum(jax.device_put(x, SPLIT))) == total
    turned = NamedSharding(MESH, PartitionSpec(None, "batch"))
    assert int(manifest.checksum(jax.device_put(x, turned))) == total
    for place in ((0, 0), (63, 1023), (7, 100)):
        for bit in (0, 17, 31):
            other = x.copy()
            other.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert int(manifest.checksum(other)) != total
    swapped = x.copy()
    swapped[[0, 32]] = x[[32, 0]]  # 32,768 elements apart
    for other in (swapped, x[::-1], x.reshape(1024, 64).T.reshape(64, 1024), 0 * x, x + 0 * x[:1]):
        assert (int(manifest.checksum(other)) == total) == np.array_equal(other, x)
    zeros = np.zeros(8, np.float32)
    assert int(manifest.checksum(zeros)) != int(manifest.checksum(-zeros))
    for dtype in (bool, np.int8, jnp.bfloat16, np.int32):
        of = np.array([0, 1, 1, 0, 1], dtype)
        assert int(manifest.checksum(of)) != int(manifest.checksum(of[::-1]))


def test_the_newest_state_comes_back_with_its_place_in_the_data(run):
    said, batches = [], batches_at(0)
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, said.append)
    assert step == 20 and same(state, state_of(20)) and not said
    assert state["params"]["clip"]["w"].sharding == SPLIT
    assert [next(batches) for _ in range(3)] == [next(x) for x in [batches_at(20)] * 3]
    assert not (run / "damaged").exists()


def test_no_checkpoint_at_all_is_none(tmp_path):
    with Checkpointer(tmp_path / "new", max_to_keep=3) as checkpoints:
        assert checkpoints.restore_latest(state_of(0), batches_at(0), print) is None
        assert checkpoints.latest() is None and checkpoints.select_step() is None
    assert not (tmp_path / "new").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "value": (lambda at: flip(values(at / "params")), "clip/w differs from its checksum"),
    "short": (lambda at: cut(values(at / "params")), "params cannot be read"),
    "index": (lambda at: cut(at / "rest" / "manifest.ocdbt"), "rest cannot be read"),
    "shapes": (lambda at: (at / "rest" / "_METADATA").unlink(), "rest cannot be read"),
    "moments": (lambda at: shutil.rmtree(at / "rest"), "rest cannot be read"),
    "place": (lambda at: count_on(at / "data" / "process_0-of-1.json"), "json has changed"),
    "no place": (lambda at: shutil.rmtree(at / "data"), "json is missing"),
    "manifest": (lambda at: flip(at / "manifest/metadata"), "manifest/metadata"),
    "no manifest": (lambda at: shutil.rmtree(at / "manifest"), "manifest/metadata is missing"),
    "empty": (lambda at: (shutil.rmtree(at), at.mkdir()), "manifest/metadata is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_passed_over_and_can_be_written_again(run, kind, capfd):
    damage, why = DAMAGE[kind]
    damage(run / "checkpoints" / "20")
    said, batches = [], batches_at(0)
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, said.append)
        assert step == 10 and same(state, state_of(10)) and next(batches) == next(batches_at(10))
        assert why in said[0] and f"{run}/checkpoints/20" in said[0] and "step 10" in said[0]
        assert all(line.startswith("warning: ") and "\n" not in line for line in said)
        assert steps_of(run) == [10] and (run / "damaged" / "20").is_dir()
        checkpoints.save(20, state_of(21), batches_at(20))
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, said.append)
    assert step == 20 and same(state, state_of(21))
    assert "Traceback" not in capfd.readouterr().err


def test_where_no_step_is_whole_nothing_is_moved(run):
    for step in (10, 20):
        cut(run / "checkpoints" / str(step) / "manifest/metadata")
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        with pytest.raises(DataError, match="no other step in .*checkpoints is whole: put a copy"):
            checkpoints.restore_latest(state_of(0), batches_at(0), print)
    assert steps_of(run) == [10, 20] and not (run / "damaged").exists()


def test_another_model_is_an_error_and_no_damage(run):
    said, shapes = [], jax.eval_shape(lambda: state_of(0, width=40)["params"])
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        with pytest.raises(DataError, match=r"w is float32\[64, 256\] there and float32\[64, 40"):
            checkpoints.restore_latest(state_of(0, width=40), batches_at(0), said.append)
        with pytest.raises(DataError, match="checkpoints/10 is not of the model"):
            checkpoints.params(10, shapes)
    assert not said and steps_of(run) == [10, 20]


def test_another_number_of_processes_is_told_of(tmp_path):
    with pytest.raises(UsageError, match="written by 4 processes, and there are 1"):
        manifest.read_iterator_state({"iterator_states": 4}, tmp_path)


def test_parameters_to_score_with_are_verified(run):
    shapes = jax.eval_shape(lambda: state_of(0)["params"])
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        found = checkpoints.params(20, shapes)
        assert same(found, state_of(20)["params"]) and isinstance(found["clip"]["w"], np.ndarray)
        shutil.rmtree(run / "checkpoints" / "20" / "rest")  # which scoring does not read
        assert same(checkpoints.params(20, shapes), found)
        flip(values(run / "checkpoints" / "20" / "params"))
        with pytest.raises(DataError, match="checkpoints/20: params/clip/w differs"):
            checkpoints.params(20, shapes)


def test_what_a_killed_run_left_half_written_goes(run):
    half = run / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "20", half)
    with Checkpointer(run, max_to_keep=3) as checkpoints:
        assert half.exists()  # it may be another process's, until a run goes on here
        assert checkpoints.restore_latest(state_of(0), batches_at(0), print)[1] == 20
    assert steps_of(run) == [10, 20]


@pytest.mark.parametrize(
    "best_by, best, value",
    [("rsum", 20, 302.0), ("text_to_video/R@1", 20, 41.0), ("video_to_text/MdR", 30, 2.0)],
)
def test_the_newest_the_best_and_every_so_many_are_kept(tmp_path, best_by, best, value):
    table = {10: (20.0, 9.0), 20: (41.0, 7.0), 30: (30.0, 2.0), 50: (30.0, 8.0)}
    told = {"max_to_keep": 1, "keep_period": 40, "select_by": best_by}
    for steps in ((10, 20, 30, 40), (50, 60)):  # the second time with the best on disk only
        with Checkpointer(tmp_path, **told) as checkpoints:
            for step in steps:
                scored = figures(*table[step]) if step in table else None
                checkpoints.save(step, state_of(step), batches_at(0), scored)
            chosen = checkpoints.select_step()
        assert chosen == {"step": best, "chosen_on": "val", "chosen_by": best_by, best_by: value}
        assert steps_of(tmp_path) == sorted({best, 40, steps[-1]})
    with Checkpointer(tmp_path, max_to_keep=1) as checkpoints:  # by the run's own figure
        assert checkpoints.select_step() == chosen


def test_of_equals_the_latest_is_chosen_and_without_figures_the_last(tmp_path):
    with Checkpointer(tmp_path, max_to_keep=2) as checkpoints:
        checkpoints.save(1, state_of(1), batches_at(0))
        assert checkpoints.select_step() == {"step": 1, "chosen_on": None}
        for step in (2, 3):
            checkpoints.save(step, state_of(1), batches_at(0), figures(10.0, split="test"))
        checkpoints.save(4, state_of(1), batches_at(0))
        chosen = checkpoints.select_step()
    assert chosen["step"] == 3 and "optimistic" in chosen["warning"]


@pytest.mark.parametrize("key, value", [("select_by", "R@1"), ("keep_period", -1)])
def test_what_to_keep_is_validated(key, value):
    config = base.get_config()
    schema.validate(config)
    config.train[key] = value
    with pytest.raises(UsageError, match=f"train.{key}"):
        schema.validate(config)

"""Checkpoints in a bucket: damaged and partial ones, and a bucket that does not answer."""

import gcsfs.retry
import jax
import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

from data.errors import DataError
from data.storage import files
from data.storage.path import Path
from hvp_jax.checkpoints import bucket as bucket_of_checkpoints
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.checkpoints.save_weights import save_weights
from tests.helpers.bucket import no_fault, unavailable_for
from tests.helpers.saved_states import batches_at, metrics, same, state_of


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """The bucket, whose clients give up soon."""
    monkeypatch.setattr(gcsfs.retry, "min", lambda *seconds: 0, raising=False)
    quick = {"max_retries": 2, "initial_delay": "10ms", "max_delay": "10ms"}
    monkeypatch.setattr(bucket_of_checkpoints, "RETRIES", quick)
    yield bucket_server
    bucket_server.fault = no_fault


@pytest.fixture(scope="module")
def saved(bucket_server):
    with Checkpointer(Path("gs://bucket/saved"), max_to_keep=3) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state_of(step), batches_at(step), metrics(float(step)))
    return "saved"


@pytest.fixture
def run(bucket, saved, tmp_path):
    """A copy of the saved steps."""
    for name in bucket.files(f"{saved}/"):
        bucket.copy(name, f"{tmp_path.name}/{name.partition('/')[2]}")
    return Path("gs://bucket") / tmp_path.name


def open_run(workdir) -> Checkpointer:
    return Checkpointer(workdir, max_to_keep=2)


def restore(workdir, warnings=None):
    with open_run(workdir) as checkpoints:
        warn = print if warnings is None else warnings.append
        return checkpoints.restore_latest(state_of(0), batches_at(0), warn)


def largest(bucket, workdir, item: str) -> str:
    """The object with the values of an item of step 20."""
    objects = bucket.files(f"{workdir.name}/checkpoints/20/{item}/ocdbt.process_0/d/")
    return "gs://bucket/" + max(objects, key=lambda name: len(objects[name]))


def turn_bit(path: str) -> None:
    content = bytearray(files.read_bytes(path))
    content[len(content) // 2] ^= 4
    files.write_bytes(path, bytes(content))


DAMAGE = {
    "deleted": (files.remove, "params"),
    "emptied": (lambda path: files.write_bytes(path, b""), "params"),
    "one bit turned": (turn_bit, "params"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_passed_over_and_can_be_written_again(bucket, run, kind):
    damage, item = DAMAGE[kind]
    damage(largest(bucket, run, item))
    before, warnings = bucket.files(f"{run.name}/checkpoints/20/"), []
    with open_run(run) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches_at(0), warnings.append)
        assert step == 10 and same(state, state_of(10))
        assert warnings[0].startswith(f"warning: {run}/checkpoints/20: {item}")
        assert warnings[1].endswith(f"the damaged steps 20 are now in {run}/damaged")
        assert not bucket.files(f"{run.name}/checkpoints/20/")
        aside = bucket.files(f"{run.name}/damaged/20/")
        assert sorted(aside.values()) == sorted(before.values())
        checkpoints.save(20, state_of(21), batches_at(20))
    state, step = restore(run)
    assert step == 20 and same(state, state_of(21))


def test_a_step_that_was_being_written_when_a_run_was_killed_is_no_step(bucket, run):
    """Its mark is written last."""
    files.remove(run / "checkpoints/20/commit_success.txt")
    warnings = []
    state, step = restore(run, warnings)
    assert step == 10 and same(state, state_of(10)) and not warnings
    assert not bucket.files(f"{run.name}/checkpoints/20/")


def test_the_newest_and_the_best_steps_are_kept(bucket, run):
    with Checkpointer(run, max_to_keep=1) as checkpoints:
        checkpoints.save(30, state_of(30), batches_at(30), metrics(1.0))
    names = bucket.files(f"{run.name}/checkpoints/")
    assert {int(name.split("/")[2]) for name in names} == {20, 30}
    with open_run(run) as checkpoints:
        shapes = jax.eval_shape(lambda: state_of(0)["params"])
        assert checkpoints.select_step()["step"] == 20
        assert same(checkpoints.params(20, shapes), jax.device_get(state_of(20)["params"]))


def test_converted_weights_are_saved(bucket, tmp_path):
    workdir = Path("gs://bucket") / tmp_path.name
    save_weights(workdir, 0, jax.device_get(state_of(3)["params"]))
    with open_run(workdir) as checkpoints:
        shapes = jax.eval_shape(lambda: state_of(0)["params"])
        assert same(checkpoints.params(0, shapes), jax.device_get(state_of(3)["params"]))


@pytest.mark.parametrize("part", ["/params/ocdbt.process_0/d/", "/manifest/metadata"])
def test_a_bucket_that_does_not_answer_is_no_damage(bucket, run, part):
    """Of the objects that TensorStore reads, and of those that we read."""
    bucket.fault = lambda method, url: 503 if f"checkpoints/20{part}" in url else None
    with open_run(run) as checkpoints:
        with pytest.raises(OSError, match="the bucket cannot be reached"):
            checkpoints.restore_latest(state_of(0), batches_at(0), print)
    bucket.fault = no_fault
    assert restore(run)[1] == 20


@pytest.mark.parametrize(
    ("status", "reason", "part"),
    [
        (503, "the bucket cannot be reached", "/params/ocdbt.process_0/"),  # by TensorStore
        (403, "no right to do that", "/commit_success.txt"),  # by gcsfs
    ],
)
def test_a_bucket_that_cannot_be_written_to_is_one_line(bucket, run, status, reason, part):
    def fault(method, url):
        return status if method == "POST" and f"checkpoints/30{part}" in url else None

    bucket.fault = fault
    with pytest.raises(DataError, match=f"step 30 could not be written to gs.*: {reason}") as info:
        with open_run(run) as checkpoints:
            checkpoints.save(30, state_of(30), batches_at(30))
    assert "\n" not in str(info.value)
    bucket.fault = no_fault
    assert restore(run)[1] == 20


def test_a_bucket_that_does_not_answer_for_a_while_is_survived(bucket, run, monkeypatch):
    patient = {"max_retries": 7, "initial_delay": "100ms", "max_delay": "1s"}
    monkeypatch.setattr(bucket_of_checkpoints, "RETRIES", patient)
    monkeypatch.setattr(gcsfs.retry, "min", lambda *seconds: 0.3, raising=False)
    with open_run(run) as checkpoints:
        bucket.fault = unavailable_for(1.0)
        checkpoints.save(30, state_of(30), batches_at(30))
    state, step = restore(run)
    assert step == 30 and same(state, state_of(30))


def test_the_time_of_repeated_requests_is_bounded():
    bucket_of_checkpoints.limit_retries()
    for use_ocdbt in (False, True):
        context = tensorstore_utils.get_ts_context(use_ocdbt=use_ocdbt).spec.to_json()
        assert context["gcs_request_retries"]["max_retries"] == 7

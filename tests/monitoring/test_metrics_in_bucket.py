"""What a run with a workdir in a bucket logs: rows and events in parts, traces, its lock."""

import json
import logging
import threading
import time

import gcsfs.retry
import pytest

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.monitoring import process_identity, profiler, watchdog
from hvp_jax.monitoring.metric_rows import files, parts
from hvp_jax.monitoring.metrics_logger import MetricsLogger
from hvp_jax.monitoring.workdir_lock import WorkdirLock
from tests.helpers.bucket import no_fault
from tests.monitoring.test_metrics_logger import tensorboard_rows


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """The bucket, whose client does not wait before it repeats a request."""
    monkeypatch.setattr(gcsfs.retry, "min", lambda *seconds: 0, raising=False)
    monkeypatch.setattr(parts, "INTERVAL", 3600.0)
    yield bucket_server
    bucket_server.fault = no_fault


@pytest.fixture
def workdir(bucket, tmp_path):
    return Path("gs://bucket") / tmp_path.name


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def log(workdir, steps, total=99, at=0) -> None:
    with MetricsLogger(workdir, total, at) as metrics:
        for step in steps:
            metrics.write(step, {"loss": step / 3})


def steps_of(workdir) -> list[int]:
    return [row["step"] for row in files.read_rows(workdir)]


def test_rows_are_in_parts_of_a_bounded_size_in_the_order_of_their_names(
    bucket, workdir, monkeypatch
):
    monkeypatch.setattr(parts, "LIMIT", 200)
    log(workdir, range(1, 41))
    rows = files.read_rows(workdir)
    assert rows == [{"step": step, "loss": step / 3} for step in range(1, 41)]
    stored = bucket.files(f"{workdir.name}/metrics/")
    assert len(stored) > 4 and all(len(content) < 300 for content in stored.values())
    assert b"".join(stored[name] for name in sorted(stored)) == b"".join(
        (json.dumps(row) + "\n").encode() for row in rows
    )


def test_a_run_that_resumes_drops_the_rows_of_later_steps(bucket, workdir, monkeypatch):
    monkeypatch.setattr(parts, "LIMIT", 100)
    log(workdir, range(1, 21))
    log(workdir, range(8, 12), at=7)
    assert steps_of(workdir) == list(range(1, 12))
    log(workdir, [1, 2])  # from the beginning
    assert steps_of(workdir) == [1, 2]


def test_a_copy_on_a_disk_is_read_and_resumed_and_so_is_a_copy_of_that(bucket, workdir, tmp_path):
    log(workdir, range(1, 5))
    (tmp_path / "metrics").mkdir()
    for name, content in bucket.files(f"{workdir.name}/metrics/").items():
        (tmp_path / "metrics" / name.rpartition("/")[2]).write_bytes(content)
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    log(tmp_path, [4, 5], at=3)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    (workdir / "metrics.jsonl").write_text((tmp_path / "metrics.jsonl").read_text())
    log(workdir, [5, 6], at=4)
    assert steps_of(workdir)[-3:] == [4, 5, 6]


def test_readers_see_rows_without_a_flush_and_writers_do_not_wait(bucket, workdir, monkeypatch):
    monkeypatch.setattr(parts, "INTERVAL", 0.05)
    answer = threading.Event()

    def hang(method, url):
        if method == "POST":
            answer.wait(30)

    with MetricsLogger(workdir, 9) as metrics:
        bucket.fault = hang
        for step in (1, 2, 3):
            metrics.write(step, {"loss": 1.0})
        assert not files.has_rows(workdir)
        answer.set()
        until(lambda: files.has_rows(workdir) and steps_of(workdir) == [1, 2, 3])


def test_rows_that_cannot_be_written_are_reported_once_and_written_later(
    bucket, workdir, monkeypatch, caplog
):
    monkeypatch.setattr(parts, "INTERVAL", 0.02)
    refused = []

    def fault(method, url):
        if method == "POST" and len(refused) < 8:
            refused.append(url)
            return 403

    bucket.fault = fault
    with caplog.at_level(logging.WARNING), MetricsLogger(workdir, 9) as metrics:
        metrics.write(1, {"loss": 1.0})
        until(lambda: files.has_rows(workdir))
    lines = [line for line in caplog.messages if "/metrics, trying again" in line]
    assert len(lines) == 1 and "again: no right to do that" in lines[0]


def test_a_flush_that_fails_is_an_error_of_one_line(bucket, workdir):
    with pytest.raises(UsageError, match=r"cannot write to gs://.*: no right.*same command"):
        with MetricsLogger(workdir, 9) as metrics:
            metrics.write(1, {"loss": 1.0})
            bucket.fault = lambda method, url: 403 if method == "POST" else None
            metrics.flush()
    assert "parts" not in [thread.name for thread in threading.enumerate()]


def test_events_are_in_files_that_tensorboard_reads(bucket, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "LIMIT", 300)
    log(workdir, range(1, 21))
    log(workdir, range(15, 18), at=14)
    (tmp_path / "tensorboard").mkdir()
    stored = bucket.files(f"{workdir.name}/tensorboard/")
    for name, content in stored.items():
        (tmp_path / "tensorboard" / name.rpartition("/")[2]).write_bytes(content)
    assert len(stored) > 3 and all(len(content) < 400 for content in stored.values())
    rows = tensorboard_rows(tmp_path)
    assert [step for step, _ in rows] == list(range(1, 18))
    assert rows[8][1]["loss"] == pytest.approx(3.0)


def test_a_trace_is_in_the_bucket_when_it_is_complete(bucket, workdir):
    with profiler.StepProfiler(workdir / "profile", (2, 3)) as trace:
        for step in range(1, 4):
            trace.step(step)
        assert not bucket.files(f"{workdir.name}/profile")
    names = bucket.files(f"{workdir.name}/profile/plugins/profile/")
    assert any(name.endswith(".xplane.pb") for name in names)


def test_processes_leave_their_status_in_the_bucket(bucket, workdir):
    with watchdog.Watchdog(workdir / "alive", 3600.0, 1, 2) as dog:
        dog._write_status(7, "saving")
        stored = bucket.files(f"{workdir.name}/alive/")
        assert json.loads(stored[f"{workdir.name}/alive/process_1.json"])["step"] == 7
        assert "process 0 (ended, or never started)" in dog._report(7, "saving")
    assert not bucket.files(f"{workdir.name}/alive/")


@pytest.fixture
def locks(workdir, monkeypatch):
    """Makes locks of one workdir of runs that cannot see each other's processes."""
    monkeypatch.setattr(process_identity, "is_alive", lambda process: None)
    made = []

    def make(**times) -> WorkdirLock:
        fast = {"interval": 0.05, "patience": 0.5, "poll": 0.05}
        made.append(WorkdirLock(workdir, **(fast | times)))
        return made[-1]

    yield make
    for lock in made:
        lock.release()


def acquire(lock: WorkdirLock) -> None:
    while not lock.attempt():
        time.sleep(lock.poll)


def test_a_run_keeps_its_workdir_by_heartbeats_and_leaves_no_trace(bucket, workdir, locks):
    first, second = locks(), locks(patience=60)
    acquire(first)
    acquire(second)
    assert first.held and not second.held and "is in use by another run" in second.refusal
    second.release()
    first.release()
    assert not bucket.files(workdir.name)


def test_of_runs_that_take_over_in_the_same_instant_one_wins(bucket, workdir, locks):
    stale = process_identity.identify() | {"host": "gone", "run": "other"}
    (workdir / "lock.json").write_text(json.dumps(stale))
    runs = [locks(patience=0.3) for _ in range(4)]
    threads = [threading.Thread(target=acquire, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.held for run in runs].count(True) == 1


def test_a_lock_whose_creation_was_not_acknowledged_is_held(locks):
    lock = locks()
    lock.path.write_bytes(lock._content())
    assert lock.attempt() and lock.held


def test_a_bucket_that_is_not_there_is_refused():
    lock = WorkdirLock(Path("gs://nobody/run"))
    assert lock.attempt() and not lock.held
    assert lock.refusal == (
        "cannot write gs://nobody/run/lock.json: there is no such object or bucket"
    )


def test_a_heartbeat_does_not_replace_the_lock_of_a_successor(bucket, workdir, locks):
    """Its request was on the way, or its process was suspended, while another run took over."""
    lock = locks(interval=3600)
    acquire(lock)
    successor = json.dumps({"host": "new", "run": "other"})
    (workdir / "other").write_text(successor)

    def take_over(method, url):
        if method == "POST" and "lock.json" in url:
            bucket.copy(f"{workdir.name}/other", f"{workdir.name}/lock.json")

    bucket.fault = take_over
    assert lock._renew() is None
    assert lock.path.read_text() == successor
    assert lock._renew()["host"] == "new"  # and the run ends

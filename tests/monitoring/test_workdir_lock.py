"""Which of two runs gets a workdir, and when a lock is taken over."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from hvp_jax.monitoring import process_identity, workdir_lock
from hvp_jax.monitoring.workdir_lock import WorkdirLock
from tests.helpers.command import ROOT

FAST = {"interval": 0.05, "patience": 1.0, "poll": 0.05}


@pytest.fixture
def locks(tmp_path):
    """Makes locks of one workdir with short times, and releases them in the end."""
    made = []

    def make(**times) -> WorkdirLock:
        made.append(WorkdirLock(tmp_path / "runs" / "one", **(FAST | times)))
        return made[-1]

    yield make
    for lock in made:
        lock.release()


@pytest.fixture
def elsewhere(monkeypatch):
    """No process can be seen from here, as if all of them ran on other hosts."""
    monkeypatch.setattr(process_identity, "is_alive", lambda process: None)


def acquire(lock: WorkdirLock) -> int:
    """The number of attempts until it is decided who has the workdir."""
    attempts = 1
    while not lock.attempt():
        attempts += 1
        time.sleep(lock.poll)
    return attempts


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def write_lock(lock: WorkdirLock, **fields) -> None:
    lock.workdir.mkdir(parents=True, exist_ok=True)
    record = process_identity.identify() | {"run": "other", "heartbeat": process_identity.now()}
    lock.path.write_text(json.dumps(record | fields))


def test_a_second_run_is_refused_at_once_and_told_who_holds_the_workdir(locks):
    first, second = locks(), locks()
    assert first.attempt() and first.held
    assert second.attempt() and not second.held
    own = process_identity.identify()
    assert f"process {os.getpid()} on host {own['host']}, started 20" in second.refusal
    second.release()  # which must not release the first
    assert json.loads(first.path.read_text())["pid"] == os.getpid()


def test_a_released_workdir_is_free_and_has_no_trace_of_the_lock(locks, tmp_path):
    first = locks()
    assert first.attempt() and first.path.exists()
    first.release()
    assert not (tmp_path / "runs").exists()  # it did not exist before
    second = locks()
    assert second.attempt() and second.held
    (second.workdir / "config.json").touch()
    second.release()
    assert [path.name for path in second.workdir.iterdir()] == ["config.json"]


@pytest.mark.parametrize("case", ["ended", "killed and not waited for", "same number"])
def test_the_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(locks, case):
    lock, child = locks(), None
    if case == "ended":
        write_lock(lock, pid=dead_process())
    elif case == "same number":
        write_lock(lock, start_ticks=process_identity.identify()["start_ticks"] - 1)
    else:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        state, start = process_identity._state_and_start(child.pid)
        assert state
        write_lock(lock, pid=child.pid, start_ticks=start)
        child.kill()
        while process_identity._state_and_start(child.pid)[0] != "Z":
            time.sleep(0.01)
    assert acquire(lock) == 2 and lock.held  # the second one verifies
    if child:
        child.communicate()


@pytest.mark.parametrize(
    "fields",
    [{"host": "another"}, {"boot": "before"}, {"namespace": "pid:[1]"}, {"boot": ""}],
    ids=["host", "boot", "container", "unknown"],
)
def test_a_process_of_another_place_is_not_judged_by_its_number(fields):
    process = process_identity.identify()
    assert process_identity.is_alive(process) is True
    assert process_identity.is_alive(process | {"pid": dead_process()}) is False
    assert process_identity.is_alive(process | {"pid": dead_process()} | fields) is None


@pytest.mark.parametrize("content", [b"", b'{"host": "gone", "pi', b"[]", None])
def test_a_lock_without_heartbeats_is_taken_over_in_the_end(locks, content, caplog):
    lock = locks(poll=0.25)
    write_lock(lock, host="gone", pid=7)
    if content is not None:
        lock.path.write_bytes(content)
    assert acquire(lock) == 6 and lock.held  # once, for a second, and to verify
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    (record,) = caplog.records
    assert "waiting up to 1 s" in record.getMessage()


def test_a_run_on_another_host_keeps_its_workdir_by_heartbeats(locks, elsewhere):
    first, second = locks(), locks(patience=60)
    assert acquire(first) == 1
    acquire(second)
    assert "is in use" in second.refusal and first.path.exists()


def test_of_runs_that_start_or_take_over_in_the_same_instant_one_wins(locks, elsewhere):
    for stale in (False, True):
        runs = [locks() for _ in range(8)]
        if stale:
            write_lock(runs[0], host="gone")
        threads = [threading.Thread(target=acquire, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run.held for run in runs].count(True) == 1
        for run in runs:
            run.release()


def test_the_slower_one_of_two_that_take_over_has_it(locks, elsewhere):
    """It has read the stale lock before the faster one has replaced it."""
    faster, slower = locks(patience=0.0), locks(patience=0.0)
    write_lock(faster, host="gone")
    assert not faster.attempt()  # it has replaced the lock, and verifies that next
    write_lock(slower, host="gone")
    assert not slower.attempt()
    assert not faster.attempt() and not faster.held
    assert slower.attempt() and slower.held
    assert faster.attempt() and "is in use" in faster.refusal


HOLD = """
import sys, time
from pathlib import Path
from hvp_jax.monitoring.workdir_lock import WorkdirLock
lock = WorkdirLock(Path(sys.argv[1]), interval=0.05)
assert lock.attempt()
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_whose_workdir_was_taken_over_ends(locks):
    lock = locks()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, lock.workdir],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout and child.stdout.readline() == "held\n"
    lock.path.unlink()
    write_lock(lock, host="new", pid=7)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1 and "taken over by another run" in err
    assert "process 7 on host new" in err and err.count("\n") == 1
    assert json.loads(lock.path.read_text())["host"] == "new"


def test_a_lock_that_somebody_has_removed_is_written_again(locks):
    lock = locks()
    assert lock.attempt()
    lock.path.unlink()
    end = time.monotonic() + 10
    while not lock.path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_file_that_nfs_is_removing_counts_as_removed(locks, monkeypatch):
    lock = locks()
    write_lock(lock, host="gone")

    def read_bytes(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(workdir_lock.storage, "read_bytes", read_bytes)
    assert not lock.attempt() and not lock.refusal
    lock.path.unlink()
    assert lock.attempt() and lock.held
    monkeypatch.undo()


def test_a_workdir_that_cannot_be_written_is_refused(locks, tmp_path):
    (tmp_path / "runs").write_text("a file")
    lock = locks()
    assert lock.attempt() and str(lock.workdir) in lock.refusal and not lock.held

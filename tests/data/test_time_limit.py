"""The time limit of a job: processor time, whatever else runs."""

import os
import time

import pytest

from data import time_limit, worker_pool
from data.time_limit import TimeLimit
from data.worker_process import Failed


def spin(seconds: float) -> str:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def sleep_longer_than_the_limit(job) -> str:
    time.sleep(1.5)
    return "done"


def spin_job(job) -> str:
    return spin(30)


def results(work, jobs, **options) -> list:
    options = {"processes": 1, "seconds": 0.5, "memory": 1 << 30} | options
    return [result for _, result in worker_pool.run_isolated(work, jobs, **options)]


def test_waiting_is_not_counted_and_work_is():
    assert results(sleep_longer_than_the_limit, [0]) == ["done"]
    (failed,) = results(spin_job, [0])
    assert isinstance(failed, Failed) and "of processor time" in failed.reason
    with worker_pool.IsolatedProcess(spin_job, seconds=0.5) as process:
        assert list(process.each([0])) == [failed]


def test_a_process_that_only_waits_is_ended_at_last(monkeypatch):
    monkeypatch.setattr(time_limit, "IDLE", 1)
    limit = TimeLimit(os.getpid(), 0.2)
    time.sleep(0.3)
    assert limit.remaining() == 0


def test_a_large_file_may_take_longer(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(3000 << 20)
    job = type("Job", (), {"path": str(path)})
    assert worker_pool._seconds_for_content(job) == pytest.approx(3000)
    assert worker_pool._seconds_for_content("no path") == 0


def test_without_proc_wall_time_counts(monkeypatch):
    monkeypatch.setattr(time_limit, "processor_seconds", lambda pid: None)
    limit = TimeLimit(os.getpid(), 0.1)
    assert 0 < limit.remaining() <= 0.1
    time.sleep(0.15)
    assert limit.remaining() == 0

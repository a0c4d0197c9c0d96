"""A run holds its workdir until it ends, whatever ends it."""

import json
import signal
import subprocess
import sys

import pytest

from data.errors import UsageError
from hvp_jax.monitoring.workdir_lock import WorkdirLock
from hvp_jax.training.exclusive import exclusive
from tests.helpers.command import ROOT

HOLD = """
import sys, time
from pathlib import Path
from hvp_jax.training.exclusive import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_an_error_releases_the_workdir(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / "lock.json").exists()
        with pytest.raises(UsageError, match="is in use"), exclusive(tmp_path / "run"):
            raise AssertionError("it is held")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_after_a_signal_the_workdir_is_free_at_once(tmp_path, number):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "held\n"
    child.send_signal(number)
    assert child.wait(30) == -number
    assert (tmp_path / "lock.json").exists() == (number == signal.SIGKILL)
    lock = WorkdirLock(tmp_path, poll=0.0)
    assert (lock.attempt() or lock.attempt()) and lock.held
    lock.release()


def test_a_run_in_a_workdir_in_use_is_refused_and_changes_nothing(tmp_path, run_cli):
    workdir = tmp_path / "run"
    with exclusive(workdir):
        status, out, err = run_cli(
            *("train", "--config=configs/demo.py", f"--workdir={workdir}", "--json")
        )
        assert [path.name for path in workdir.iterdir()] == ["lock.json"]
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "is in use by another run: process" in lines[0]
    assert "Traceback" not in err and json.loads(out)["error"] in lines[0]

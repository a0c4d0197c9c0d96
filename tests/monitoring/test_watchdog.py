"""A run that hangs is ended, with a report of the process that is behind."""

import json
import subprocess
import sys

from hvp_jax.monitoring import watchdog
from tests.helpers.command import ROOT

HANG = """
import sys, time
from pathlib import Path
from hvp_jax.monitoring.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), float(sys.argv[2]), 1, 3) as watchdog:
    for i in range(8):
        watchdog.heartbeat(*((7, "waiting for the devices") if i else (6, "reading a batch")))
        time.sleep(0.2)
    if len(sys.argv) > 3:
        time.sleep(60)
"""


def hang(folder, *arguments):
    command = [sys.executable, "-c", HANG, str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)


def test_a_run_that_hangs_is_ended_and_the_process_behind_is_named(tmp_path):
    statuses = {0: (7, watchdog.WAITING_FOR_DEVICES), 2: (7, "reading a batch")}
    for process, (step, doing) in statuses.items():
        status = {"step": step, "doing": doing}
        (tmp_path / f"process_{process}.json").write_text(json.dumps(status))
    done = hang(tmp_path, "1", "and hang")
    line, *more = done.stderr.splitlines()
    assert done.returncode == 1 and line == (
        "error: no progress for 1 s at step 7; stuck: process 2 (reading a batch). "
        "Run the same command again to resume from the last checkpoint"
    )
    assert any("time.sleep" in text or "<string>" in text for text in more)  # the stack traces
    (tmp_path / "process_2.json").unlink()
    assert "process 2 (ended, or never started)" in hang(tmp_path, "1", "and hang").stderr


def test_a_run_that_makes_progress_is_not_ended(tmp_path):
    done = hang(tmp_path / "alive", "1")
    assert done.returncode == 0 and not done.stderr
    assert list((tmp_path / "alive").iterdir()) == []

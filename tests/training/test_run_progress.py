"""What `report` says about a run, from made-up workdirs on a disk and in a bucket."""

import contextlib
import datetime
import json

import pytest

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.cli.verbs import report
from hvp_jax.monitoring import process_identity
from hvp_jax.monitoring.json_files import to_json_types
from hvp_jax.training import run_history, run_progress
from tests.helpers.bucket import BUCKET, emulated_bucket

EARLIER = "2026-01-01T00:{:02}:00.000+00:00"


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    """A workdir whose run of 40 steps has logged every tenth step, at 2 steps/s, up to step 30."""
    with contextlib.ExitStack() as stack:
        if request.param == "bucket":
            stack.enter_context(emulated_bucket())
        folder = Path(f"{BUCKET}/run" if request.param == "bucket" else tmp_path)
        write(folder / "config.json", {"train": {"steps": 40}})
        rows = [row(step) for step in (10, 20, 30)]
        rows.insert(2, figures(20))
        storage.write_bytes(folder / "metrics.jsonl", "".join(rows).encode())
        yield folder


def row(step: int) -> str:
    measured = {"steps/s": 2.0, "examples/s": 64.0, "input_wait_share": 0.25}
    return json.dumps({"step": step, "loss": 1.5, "skipped": 1, "measured": measured}) + "\n"


def figures(step: int) -> str:
    names = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
    scores = dict.fromkeys(("text_to_video", "video_to_text"), dict.fromkeys(names, 9.0))
    counts = {"videos": 20, "captions": 40}
    return json.dumps({"step": step, "split": "val", **scores, "counts": counts}) + "\n"


def write(path, value) -> None:
    storage.make_folder(path.parent)
    storage.write_bytes(path, json.dumps(value).encode())


def write_start(workdir, number, *, step, reached, started, ended=None) -> None:
    start = {"step": step, "reached": reached, "started": EARLIER.format(started)}
    start |= {"host": "worker", "processes": 4}
    write(workdir / "history" / f"{number:04}_start.json", start)
    if ended is not None:
        write(workdir / "history" / f"{number:04}_end.json", {"ended": EARLIER.format(ended)})


def write_lock(workdir, age: float) -> None:
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    heartbeat = now.isoformat(timespec="milliseconds")
    write(workdir / "lock.json", {"host": "worker", "pid": 7, "heartbeat": heartbeat})


def test_a_killed_run_that_was_resumed_and_stopped(workdir):
    write_start(workdir, 0, step=0, reached=0, started=0)
    write_start(workdir, 1, step=10, reached=25, started=1, ended=2)
    run = report.run(workdir)
    progress = run.progress
    assert (progress.state, run.step, progress.steps) == ("stopped", 30, 40)
    assert (progress.restarts, progress.lost_steps, progress.skipped) == (1, 15, 1)
    assert progress.seconds == 120 and progress.kept_seconds == 15  # 30 steps at 2 a second
    assert progress.goodput == 0.125
    assert progress.seconds_left == 5 and progress.heartbeat_age_s is None
    assert run.text.startswith(
        "step 30 of 40, stopped\n"
        "2 steps/s, 64 examples/s, 25% of the time waiting for input; 0:00:05 left\n"
        "loss 1.5000, 1 updates skipped\n"
        "1 restarts, 15 logged steps lost; goodput 12%: 0:00:15 in steps that count, of 0:02:00 "
        "since the first start\n\nsplit val at step 20\n"
    )
    fields = to_json_types(run)
    assert fields["step"] == 30 and fields["split"] == "val" and fields["evaluated_step"] == 20
    assert fields["progress"]["steps/s"] == 2 and fields["progress"]["goodput"] == 0.125


def test_a_run_on_another_host_runs_while_its_lock_is_fresh(workdir):
    write_start(workdir, 0, step=0, reached=0, started=0)
    write_lock(workdir, age=3)
    progress = report.run(workdir).progress
    assert (progress.state, progress.host) == ("running", "worker")
    assert 3 <= progress.heartbeat_age_s < 60
    since = datetime.datetime.fromisoformat(EARLIER.format(0))
    elapsed = (datetime.datetime.now(datetime.UTC) - since).total_seconds()
    assert progress.seconds == pytest.approx(elapsed, abs=60)
    assert "running on host worker, last heartbeat 0:00:0" in progress.text

    write_lock(workdir, age=1000)
    progress = report.run(workdir).progress
    assert progress.state == "lost"
    assert progress.seconds == pytest.approx(elapsed - 1000, abs=60)  # until its last heartbeat


def test_a_finished_run(workdir):
    write_start(workdir, 0, step=0, reached=0, started=0, ended=1)
    storage.write_bytes(workdir / "metrics.jsonl", (row(20) + row(40)).encode())
    progress = report.run(workdir).progress
    assert progress.state == "finished" and not progress.seconds_left
    assert progress.goodput == pytest.approx(1 / 3) and "left" not in progress.text


def test_a_run_of_an_earlier_version_has_no_history(workdir):
    progress = run_progress.read(workdir, [])
    assert progress.step == 0 and progress.restarts is None and progress.goodput is None
    assert progress.text == "step 0 of 40, stopped"


def test_every_start_is_recorded_and_every_end_that_is_not_a_kill(workdir):
    with run_history.recorded(workdir, 0, writes=True):
        first = run_history.read(workdir)[0]
    assert (first.step, first.reached, first.ended) == (0, 30, None)  # its rows are still there
    with pytest.raises(DataError), run_history.recorded(workdir, 20, writes=True):
        raise DataError("the loss is not finite")
    with run_history.recorded(workdir, 30, writes=False):
        pass
    first, second = run_history.read(workdir)
    assert first.ended is not None and second.ended is not None
    assert (second.step, second.reached) == (20, 30)
    assert first.started <= first.ended <= second.started <= process_identity.now()


def test_a_record_that_is_damaged_is_named(workdir):
    write_start(workdir, 0, step=0, reached=0, started=0)
    storage.write_bytes(workdir / "history" / "0000_start.json", b"{")
    with pytest.raises(DataError, match=r"0000_start.json is damaged: remove it"):
        report.run(workdir)

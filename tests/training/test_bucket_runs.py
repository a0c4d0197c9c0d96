"""Runs whose workdir is in a bucket, as commands: killed and resumed, alone and with another."""

import json
import os
import re
import subprocess
import sys

import gcsfs.retry
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from data.storage.path import Path
from hvp_jax.checkpoints import model_card
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.cli import main
from hvp_jax.monitoring.metric_rows.files import read_rows
from tests.helpers.bucket import no_fault
from tests.helpers.command import COMPILED, ROOT
from tests.helpers.train_runs import TINY
from tests.parallel.test_processes import free_address


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """The bucket, whose client does not wait before it repeats a request."""
    monkeypatch.setattr(gcsfs.retry, "min", lambda *seconds: 0, raising=False)
    yield bucket_server
    bucket_server.fault = no_fault


def start(clips, workdir, *more) -> subprocess.Popen:
    command = [sys.executable, "run.py", "train", *TINY, f"--config.data.root={clips}"]
    command += [f"--workdir={workdir}", "--config.train.steps=6", "--config.train.max_to_keep=1"]
    command += ["--config.train.checkpoint_every=2", "--config.train.eval_every=3", "--json"]
    return subprocess.Popen(
        [*command, *more],
        cwd=ROOT,
        env=os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes) -> dict:
    """What the first process prints; all of them must succeed."""
    outputs = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    return json.loads(outputs[0][0])


def kill_at(bucket, processes, victim: int, request: str) -> None:
    """Sends SIGKILL to a process at the first request that fits, and then to the others."""
    seen = []

    def fault(method, url):
        if re.search(request, f"{method} {url}") and not seen:
            seen.append(url)
            processes[victim].kill()

    bucket.fault = fault
    processes[victim].communicate(timeout=300)
    bucket.fault = no_fault
    for process in processes:
        process.kill()
        process.communicate()
    assert seen, "it ended before"


def figures(result: dict) -> dict:
    return {key: result[key] for key in ("text_to_video", "video_to_text", "checkpoint", "step")}


def rows(workdir) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "measured"} for row in read_rows(workdir)]


def weights(workdir) -> dict[str, np.ndarray]:
    with Checkpointer(workdir, max_to_keep=1) as checkpoints:
        shapes = model_card.card_shapes(model_card.read_card(workdir))
        assert checkpoints.latest() == 6
        return flatten_dict(checkpoints.params(6, shapes), sep="/")


def assert_same_run(workdir, other) -> None:
    assert rows(workdir) == rows(other)
    ours, theirs = weights(workdir), weights(other)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_run_killed_again_and_again_is_an_undisturbed_local_one(bucket, clips, tmp_path, run_cli):
    """In the midst of a checkpoint, before its mark, and while an older one is removed."""
    undisturbed = finish([start(clips, tmp_path / "run")])
    workdir = Path("gs://bucket/runs/one")
    for request in (
        "POST .*checkpoints/2/rest/ocdbt",
        "POST .*checkpoints/3/commit_success",
        "DELETE .*checkpoints/2/params",
    ):
        process = start(clips, workdir)
        kill_at(bucket, [process], 0, request)
    result = finish([start(clips, workdir)])
    assert figures(result) == figures(undisturbed)
    assert_same_run(workdir, tmp_path / "run")
    names = {name.removeprefix("runs/one/").split("/")[0] for name in bucket.files("runs/one/")}
    assert names == set(os.listdir(tmp_path / "run")) - {"metrics.jsonl"} | {"metrics"}
    status, out, err = run_cli("eval", f"--workdir={workdir}", "--json", **bucket.environment)
    assert status == 0, err
    again = json.loads(out)
    assert all(again[key] == result[key] for key in ("text_to_video", "video_to_text"))


def two(clips, workdir) -> list[subprocess.Popen]:
    flags = [f"--coordinator={free_address()}", "--processes=2"]
    return [start(clips, workdir, *flags, f"--process={i}") for i in (0, 1)]


def test_two_processes_of_which_one_is_killed_are_an_undisturbed_run(bucket, clips, tmp_path):
    undisturbed = finish(two(clips, tmp_path / "run"))
    workdir = Path("gs://bucket/runs/two")
    processes = two(clips, workdir)
    kill_at(bucket, processes, 1, "POST .*checkpoints/3/params/ocdbt.process_1")
    assert figures(finish(two(clips, workdir))) == figures(undisturbed)
    assert_same_run(workdir, tmp_path / "run")


@pytest.mark.parametrize(
    ("place", "answer", "reason"),
    [
        ("nobody", None, "there is no such object or bucket"),
        ("bucket", 401, "no valid credentials"),
        ("bucket", 403, "no right to do that"),
        ("bucket", 503, "the bucket cannot be reached: it answers 503"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(bucket, clips, capsys, place, answer, reason):
    bucket.fault = lambda method, url: answer
    workdir = f"gs://{place}/runs/none"
    command = ["train", *TINY, f"--config.data.root={clips}", f"--workdir={workdir}"]
    assert main.main(command) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot write {workdir}/lock.json: {reason}")
    assert err.count("\n") == 1

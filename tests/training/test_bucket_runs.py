"""Runs whose workdir is in a bucket, as commands: killed and resumed, alone and with another."""

import json
import os
import re
import signal
import time

import gcsfs.retry
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from data.storage import files as storage
from data.storage.path import Path
from data.synthetic import shapes
from hvp_jax.checkpoints import model_card
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.cli import main
from hvp_jax.monitoring.metric_rows.files import read_rows
from tests.helpers.bucket import emulated_s3, no_fault
from tests.helpers.prestarted import Command, Prestarted
from tests.helpers.train_runs import TINY
from tests.parallel.test_processes import free_address

# Nothing of the head, so that each start has less to trace.
RUN = (*TINY, "--config.similarity.terms=sentence_clip", "--config.distillation.stages=0")
STEPS = (
    "--config.train.steps=6",
    "--config.train.checkpoint_every=2",
    "--config.train.eval_every=3",
    "--config.train.max_to_keep=1",
)
PROGRAMS = "--config.compile_cache=gs://bucket/programs"
# A moment of a run -> the request at which it is killed, and what is in the bucket before that.
KILLS = {
    "the first checkpoint is written": ("POST .*checkpoints/2/rest/ocdbt", ""),
    "rows of metrics are written": ("POST .*/metrics/0", ""),
    "it evaluates": ("GET .*clips-val.*media", "checkpoints/2/commit_success.txt"),
    "it resumes": ("GET .*checkpoints/2/rest/", ""),
    "it reads a batch during a step": ("GET .*clips-train.*media", ""),
    "an older checkpoint is removed": (r"DELETE .*checkpoints/\d/params", ""),
}
BATCHES_AHEAD = 2 * 8  # clips


@pytest.fixture
def bucket(bucket_server, monkeypatch):
    """The bucket, whose client does not wait before it repeats a request."""
    monkeypatch.setattr(gcsfs.retry, "min", lambda *seconds: 0, raising=False)
    yield bucket_server
    bucket_server.fault = no_fault


@pytest.fixture(scope="module")
def s3():
    with emulated_s3() as environment:
        yield environment


@pytest.fixture(scope="module")
def commands(bucket_server, s3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    with Prestarted(folder, **bucket_server.environment, **s3) as server:
        yield server


@pytest.fixture(scope="module")
def data(bucket_server, tmp_path_factory) -> str:
    """A folder of clips on the disk; the same files are in gs://bucket/clips."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    shapes.make_dataset(str(folder), seed=5, train=16, val=4, test=4)
    upload(folder, "gs://bucket/clips")
    return str(folder)


def upload(folder, to: str) -> None:
    for name in ("captions.csv", *(f"videos/{name}" for name in os.listdir(f"{folder}/videos"))):
        storage.upload(f"{folder}/{name}", f"{to}/{name}")


class Place:
    """A folder on the disk or in the bucket with clips, shards and a run."""

    def __init__(self, commands: Prestarted, clips: str, folder: str):
        self._commands = commands
        self._data = (f"--config.data.root={clips}", f"--config.data.shards={folder}/shards")
        self.workdir = Path(folder) / "run"

    def prepare(self) -> None:
        command = self._commands.start("prepare", *TINY[:5], *self._data)
        assert command.wait().status == 0

    def train(self, *flags: str) -> Command:
        command = ["train", *RUN, *self._data, *STEPS, f"--workdir={self.workdir}", "--json"]
        return self._commands.start(*command, *flags)

    def train_two(self) -> list[Command]:
        """Two processes of one run."""
        cluster = f"--coordinator={free_address()}", "--processes=2"
        return [self.train(*cluster, f"--process={i}") for i in (0, 1)]

    def result(self, verb: str) -> dict:
        """What `eval` or `report` print about the run."""
        return finish(self._commands.start(verb, f"--workdir={self.workdir}", "--json"))


def finish(*processes: Command) -> dict:
    """What the first process prints; all of them must succeed."""
    outputs = [process.wait() for process in processes]
    assert [output.status for output in outputs] == [0] * len(outputs), outputs
    return json.loads(outputs[0].stdout)


def kill_at(bucket, workdir, request: str, *, victim: Command, after: str = "", nth: int = 1):
    """Sends SIGKILL to a process at the nth request that fits, when there is an object `after`."""
    seen = []
    prefix = f"{workdir}/".removeprefix("gs://bucket/")

    def fault(method, url):
        if not re.search(request, f"{method} {url}"):
            return
        end = time.monotonic() + 60
        while after and bucket.files(f"{prefix}checkpoints/2/rest") and time.monotonic() < end:
            if bucket.files(prefix + after):
                break
            time.sleep(0.01)
        if not after or bucket.files(prefix + after):
            seen.append(url)
        if len(seen) == nth:
            victim.kill()

    bucket.fault = fault
    output = victim.wait()
    bucket.fault = no_fault
    assert output.status == -signal.SIGKILL, (request, output)


def figures(result: dict) -> dict:
    return {key: result[key] for key in ("text_to_video", "video_to_text", "counts")}


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


def programs(bucket) -> list[str]:
    """The requests that write the compiled step of training."""
    return [
        url for method, url in bucket.requests if method == "POST" and "programs/jit__fun" in url
    ]


def test_from_videos_to_a_report_in_a_bucket_with_many_kills_is_a_local_run(
    bucket, commands, data, tmp_path
):
    local = Place(commands, data, str(tmp_path))
    there = Place(commands, "gs://bucket/clips", "gs://bucket/chain")
    local.prepare()
    there.prepare()
    undisturbed = local.train()
    for moment, (request, after) in KILLS.items():
        nth = BATCHES_AHEAD + 4 if moment.startswith("it reads") else 1
        victim = there.train(PROGRAMS)
        kill_at(bucket, there.workdir, request, victim=victim, after=after, nth=nth)
    compiled = programs(bucket)
    result = finish(there.train(PROGRAMS))
    assert figures(result) == figures(finish(undisturbed))
    assert compiled and programs(bucket) == compiled  # a run that resumes loads its step
    assert_same_run(there.workdir, local.workdir)
    names = {name.split("/")[2] for name in bucket.files("chain/run/")}
    assert names == set(os.listdir(local.workdir)) - {"metrics.jsonl"} | {"metrics"}
    scored, report = there.result("eval"), there.result("report")
    assert figures(scored) == figures(result) == figures(report)
    assert report["progress"]["state"] == "finished"
    # The start that was killed as it resumed had not begun.
    assert report["progress"]["restarts"] == len(KILLS) - 1


def test_two_processes_of_which_one_is_killed_are_an_undisturbed_run(
    bucket, commands, data, tmp_path
):
    local = Place(commands, data, str(tmp_path))
    there = Place(commands, "gs://bucket/clips", "gs://bucket/two")
    local.prepare()
    there.prepare()
    undisturbed = finish(*local.train_two())
    first, second = there.train_two()
    request = "POST .*checkpoints/4/params/ocdbt.process_1"
    kill_at(bucket, there.workdir, request, victim=second)
    first.kill()
    first.wait()
    assert figures(finish(*there.train_two())) == figures(undisturbed)
    assert_same_run(there.workdir, local.workdir)


def test_s3_holds_what_a_run_reads_but_no_workdir_and_no_shards(commands, data, tmp_path):
    """Orbax writes no checkpoint there, and ArrayRecord reads no shard."""
    upload(data, "s3://bucket/clips")
    storage.write_bytes("s3://bucket/clips/videos/clip0023.mp4", b"not a video")
    config, root = "--config=configs/folder.py", "--config.data.root=s3://bucket/clips"
    checked = commands.start("doctor", config, root, "--workdir=s3://bucket/check", "--json").wait()
    assert checked.status == 1, checked
    (bad,) = json.loads(checked.stdout)["bad"]
    assert bad["path"] == "s3://bucket/clips/videos/clip0023.mp4"
    excluded = "--config.data.exclude=s3://bucket/check/bad_ids.txt"
    shards = f"--config.data.shards={tmp_path}/shards"
    prepared = commands.start("prepare", *TINY[:5], root, excluded, shards, "--json").wait()
    assert prepared.status == 0, prepared
    assert json.loads(prepared.stdout)["splits"] == {"test": 4, "train": 15, "val": 4}
    trained = commands.start(
        "train",
        *RUN,
        root,
        excluded,
        shards,
        f"--workdir={tmp_path}/run",
        "--config.train.steps=1",
        "--config.compile_cache=s3://bucket/programs",
        "--json",
    )
    assert finish(trained)["counts"]["videos"] == 4
    assert any(name.startswith("jit_") for name in storage.names("s3://bucket/programs"))
    for refused in (
        ["train", *TINY, root, "--workdir=s3://bucket/run"],
        ["eval", "--workdir=s3://bucket/run"],
        ["prepare", *TINY[:5], root, "--config.data.shards=s3://bucket/shards"],
    ):
        status, _, err = commands.start(*refused).wait()
        assert status == 2 and err.count("\n") == 1 and "not in s3://" in err, err


@pytest.mark.parametrize(
    ("place", "answer", "reason"),
    [
        ("nobody", None, "there is no such object or bucket"),
        ("bucket", 401, "no valid credentials"),
        ("bucket", 403, "no right to do that"),
        ("bucket", 503, "the bucket cannot be reached: it answers 503"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(bucket, data, capsys, place, answer, reason):
    bucket.fault = lambda method, url: answer
    workdir = f"gs://{place}/runs/none"
    command = ["train", *TINY, f"--config.data.root={data}", f"--workdir={workdir}"]
    assert main.main(command) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith(f"error: cannot write {workdir}/lock.json: {reason}")
    assert err.count("\n") == 1

"""The verbs train, eval and prepare, run as commands on real video files."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hvp_jax.cli.verbs import report
from hvp_jax.evaluation import metrics, rankings
from tests.helpers.command import COMPILED, ROOT
from tests.helpers.train_runs import TINY


@pytest.fixture(scope="module")
def uninterrupted(clips, tmp_path_factory, run_cli):
    """The workdir and result of an uninterrupted run of 6 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return workdir, train(run_cli, clips, workdir, steps=6)


def train(run_cli, clips, workdir, steps, *more):
    status, out, err = run_cli(
        "train",
        *TINY,
        f"--config.data.root={clips}",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
        "--config.train.checkpoint_every=2",
        "--config.train.eval_every=3",
        "--json",
        *more,
        timeout=400,
    )
    assert status == 0, err
    return json.loads(out)


def rows(workdir):
    """The rows of metrics.jsonl without `measured`, which differs from run to run."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("measured", None)
    return rows


def test_a_run_writes_its_files_and_metrics(uninterrupted):
    workdir, result = uninterrupted
    for name in ("config.json", "data.json", "environment.json", "metrics.jsonl", "eval.json"):
        assert (workdir / name).stat().st_size > 2
    for name in ("ranks.npz", "run.trec", "qrels.trec", "run.v2t.trec", "qrels.v2t.trec"):
        assert (workdir / name).stat().st_size > 2
    for name in ("loss_curve.png", "contact_sheet.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    losses = [row["loss"] for row in rows(workdir) if "loss" in row]
    assert len(losses) == 6 and np.isfinite(losses).all()
    assert [row["step"] for row in rows(workdir) if row.get("split") == "val"] == [3, 6]
    assert result["counts"] == {"videos": 10, "captions": 10, "excluded": 0}
    assert result["checkpoint"]["chosen_on"] == "val"
    assert set(result["text_to_video"]) == {"R@1", "R@5", "R@10", "R@50", "MdR", "MnR"}
    assert result["text_to_video"]["R@10"] == 100  # there are ten clips
    assert result["warning"].startswith("split test has only 10 videos: R@10 and R@50 are 100")
    assert result["scoring"]["word_weights"] == "query"
    resolved = json.loads((workdir / "config.json").read_text())
    assert resolved["data"]["max_frames"] == 2  # as configured, however long the clips are
    assert json.loads((workdir / "data.json").read_text())["num_frames"] == 2
    assert resolved["model"]["taps"] == [4] and resolved["optimizer"]["learning_rate"] == 1e-3


def test_the_cost_of_a_run_is_written(uninterrupted):
    workdir, result = uninterrupted
    cost = json.loads((workdir / "cost.json").read_text())
    assert cost["parameters"] > 10_000 and cost["flops_per_step"] > 1e6
    assert cost["step_ms"] > 0 and cost["peak_memory_mib"] > 10
    printed = report.run(workdir)
    assert printed.cost == cost and printed.step == 6
    assert printed.progress.state == "finished" and printed.progress.restarts == 0
    assert 0 < printed.progress.goodput <= 1
    assert printed.text_to_video == result["text_to_video"]


def test_eval_gives_exactly_the_metrics_of_train(uninterrupted, run_cli):
    """And reranked figures beside them, if asked for."""
    workdir, result = uninterrupted
    before = rankings.read(workdir)
    rerank = "--rerank=dsl,qbnorm,dis"
    status, out, err = run_cli("eval", f"--workdir={workdir}", rerank, "--json", timeout=300)
    assert status == 0, err
    again = json.loads(out)
    for key in ("text_to_video", "video_to_text", "checkpoint"):
        assert again[key] == result[key]
    assert "reranked" not in result and list(again["reranked"]) == ["dsl", "qbnorm", "dis"]
    # 24 clips with two captions each are in split train.
    assert again["reranked"]["dis"]["sees"].startswith("sees 48 captions of split train")
    assert set(again["reranked"]["dsl"]["video_to_text"]) == set(result["video_to_text"])
    assert json.loads((workdir / "eval.json").read_text())["reranked"] == again["reranked"]
    after = rankings.read(workdir)
    assert (after.text_to_video == before.text_to_video).all() and after.data == before.data
    assert metrics.summary(after.text_to_video) == result["text_to_video"]
    assert metrics.summary(after.video_to_text) == result["video_to_text"]


def test_a_stopped_run_resumes_with_the_numbers_of_an_uninterrupted_one(
    clips, uninterrupted, tmp_path
):
    """SIGTERM once the second step is logged; then the same command again.

    It compiles nothing large: the uninterrupted run has kept its programs.
    """
    workdir = tmp_path / "run"
    command = [sys.executable, "run.py", "train", *TINY, f"--config.data.root={clips}"]
    command += [f"--workdir={workdir}", "--config.train.steps=6", "--json"]
    command += ["--config.train.checkpoint_every=2", "--config.train.eval_every=3"]
    environment = os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": "1"}
    command.append(f"--config.compile_cache={environment.pop('JAX_COMPILATION_CACHE_DIR')}")
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    metrics, begin = workdir / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert first.poll() is None and time.monotonic() - begin < 300
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=120)
    stopped = json.loads(out)
    assert first.returncode == 1 and stopped["ok"] is False and 2 <= stopped["step"] < 6

    environment |= {"JAX_LOG_COMPILES": "1", "JAX_EXPLAIN_CACHE_MISSES": "1"}
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    loaded = set(re.findall(r"compilation cache hit for 'jit_(\w+)'", second.stderr))
    compiled = set(re.findall(r"COMPILATION CACHE MISS for 'jit_(\w+)'", second.stderr))
    large = {"encode_text", "encode_video", "_fun"}  # _fun: the step of pmap
    assert large <= loaded and not large & compiled, (loaded, compiled)
    assert json.loads(second.stdout)["text_to_video"] == uninterrupted[1]["text_to_video"]
    progress = report.run(workdir).progress
    assert progress.state == "finished" and (progress.restarts, progress.lost_steps) == (1, 0)
    # Every row of an uninterrupted run, once, with exactly the same numbers.
    assert rows(workdir) == rows(uninterrupted[0])


def processes(session: int) -> list[str]:
    """The command lines of a session's processes, without zombies."""
    commands = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            state, process_session = fields[0], int(fields[3])
            if process_session == session and state != "Z":
                commands.append((path / "cmdline").read_text())
        except OSError:
            pass  # it has just ended
    return commands


def test_ctrl_c_while_workers_start_saves_and_leaves_no_process(clips, tmp_path):
    """A terminal sends SIGINT to every process of the command."""
    command = [sys.executable, "run.py", "train", *TINY, f"--config.data.root={clips}", "--json"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.train.steps=50"]
    command += ["--config.data.workers=2", "--config.optimizer.schedule_epochs=1"]
    environment = os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    while sum("spawn_main" in command for command in processes(run.pid)) < 2:
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert (
        "Traceback" not in err
        and "the schedule (optimizer.schedule_epochs=1) ends at step 6" in err
    )
    stopped = json.loads(out)
    assert run.returncode == 1 and stopped["ok"] is False and 1 <= stopped["step"] < 50
    assert (tmp_path / "run" / "checkpoints" / str(stopped["step"])).is_dir()
    for _ in range(100):  # Python's shared memory tracker ends after the command
        if not (left := processes(run.pid)):
            break
        time.sleep(0.1)
    assert not left


def test_a_run_does_not_resume_with_another_config(clips, uninterrupted, run_cli):
    status, out, err = run_cli(
        *("train", *TINY, f"--config.data.root={clips}", f"--workdir={uninterrupted[0]}"),
        *("--config.train.steps=6", "--config.optimizer.learning_rate=0.5"),
    )
    assert (
        status == 2
        and "optimizer.learning_rate was 0.001, is 0.5" in err
        and "Traceback" not in err
    )


def test_a_run_does_not_resume_with_other_captions(clips, uninterrupted, run_cli, tmp_path):
    root = tmp_path / "moved"
    root.mkdir()
    os.symlink(clips / "videos", root / "videos")
    table = (clips / "captions.csv").read_text().replace("a video of", "a film of")
    (root / "captions.csv").write_text(table)
    status, _, err = run_cli(
        *("train", *TINY, f"--config.data.root={root}", f"--workdir={uninterrupted[0]}"),
        *("--config.train.steps=6",),
    )
    assert status == 2 and "captions" in err and "Traceback" not in err


def test_training_from_files_and_from_shards_is_the_same(clips, uninterrupted, tmp_path, run_cli):
    shards = f"--config.data.shards={tmp_path / 'shards'}"
    status, _, err = run_cli("prepare", *TINY, f"--config.data.root={clips}", shards)
    assert status == 0, err
    select_on = "--config.train.select_on=test"  # affects no update
    captions = tmp_path / "without_videos"
    captions.mkdir()
    shutil.copy(Path(clips) / "captions.csv", captions)
    result = train(
        run_cli, captions, tmp_path / "run", 6, shards, "--config.parallel=shard_map", select_on
    )
    chosen = result["checkpoint"]
    assert chosen["chosen_on"] == "test" and "optimistic" in chosen["warning"]
    assert "warning" not in uninterrupted[1]["checkpoint"]
    evaluated = [row for row in rows(tmp_path / "run") if row.get("split")]
    assert [(row["step"], row["split"]) for row in evaluated] == [(3, "test"), (6, "test")]
    losses = [
        [row["loss"] for row in rows(workdir) if "loss" in row]
        for workdir in (tmp_path / "run", uninterrupted[0])
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_excluded_clips_are_counted_and_leaking_word_weights_are_reported(
    clips, uninterrupted, tmp_path, run_cli
):
    with open(clips / "captions.csv", newline="") as file:
        names = {split: [] for split in ("train", "val", "test")}
        for row in csv.DictReader(file):
            names[row["split"]].append(row["video_id"])
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join([names["test"][0], names["test"][3], names["train"][1], "nobody"]))
    command = ("eval", f"--workdir={uninterrupted[0]}", "--json")
    paired = "--config.similarity.word_weights=paired"
    status, out, err = run_cli(*command, f"--config.data.exclude={ids}", paired)
    assert status == 0, err
    scoring = json.loads(out)["scoring"]
    assert scoring["contains_the_answer"] is True and "contain the answer" in scoring["warning"]
    assert json.loads(out)["counts"] == {"videos": 8, "captions": 8, "excluded": 2}
    assert "3 clips: 1 train, 2 test" in err and "1 ids match no clip" in err and "nobody" in err
    status, _, err = run_cli(*command, f"--config.data.exclude={tmp_path / 'gone'}")
    assert status == 2 and "data.exclude" in err and "Traceback" not in err

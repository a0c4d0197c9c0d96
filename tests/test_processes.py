"""Two real processes: the numbers of one device, and runs that are stopped and go on together."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import COMPILED, ROOT
from one_of_two import LAYOUTS, STEPS
from small import quick_compile  # noqa: F401
from test_step import MODEL, OPTIMIZER, batch_of, random_params
from test_train import TINY, rows

from data import shapes
from hvp_jax import names, step


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def both(command, devices: int) -> list[subprocess.Popen]:
    """Starts `command(process)` for processes 0 and 1."""
    environment = os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": str(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *command(i)], cwd=ROOT, env=environment, **pipes)
        for i in (0, 1)
    ]


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each; ends them all if one takes too long."""
    try:
        found = [p.communicate(timeout=300) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, found, strict=True)]


@pytest.fixture(scope="module")
def laid_over_two(tmp_path_factory):
    out, address = tmp_path_factory.mktemp("two") / "found.npz", free_address()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    script = f"import sys; sys.path[:0] = {path.split(os.pathsep)!r}; import one_of_two as o; "
    processes = both(
        lambda i: ["-c", script + f"o.main({address!r}, {i}, {str(out)!r})"], devices=4
    )
    for status, _, err in ends(processes):
        assert status == 0, err
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def alone():
    """The same five steps on one device, laid over nothing."""
    params = random_params(MODEL, *batch_of(0).values())
    state, found = step.new_state(params, OPTIMIZER), {"losses": [], "norms": []}
    recipe = step.Recipe(MODEL, OPTIMIZER, seed=3)
    train_step = jax.jit(functools.partial(step.train_step, recipe=recipe))
    for i in range(STEPS):
        batch = batch_of(i)
        state, metrics = train_step(state, batch | {"stop": np.zeros(len(batch["video"]), bool)})
        found["losses"].append(metrics["loss"])
        found["norms"].append(metrics["grad_norm"])
    after = names.flatten(jax.device_get(state.params))
    return found | {f"params/{name}": x for name, x in after.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_of_four_devices_give_the_numbers_of_one(laid_over_two, alone, layout):
    compared = [name for name in laid_over_two if name.startswith(layout + "/")]
    assert len(compared) == len(alone) > 40
    for name, expected in alone.items():
        error = {"rtol": 1e-5, "atol": 1e-5 if name.startswith("params/") else 0}
        np.testing.assert_allclose(laid_over_two[f"{layout}/{name}"], expected, **error)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "clips"
    shapes.make(str(root), seed=5, train=12, val=3, test=5)
    return root


def train(clips, workdir, *more) -> list[subprocess.Popen]:
    """The command in two processes of one device each."""
    address = free_address()
    given = [*TINY, f"--config.data.root={clips}", f"--workdir={workdir}", "--json", *more]
    given += ["--config.train.steps=12", "--config.train.eval_every=12", "--processes=2"]
    together = [f"--coordinator={address}", *given]
    return both(lambda i: ["run.py", "train", *together, f"--process={i}"], devices=1)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    found = ends(train(clips, workdir))
    assert [status for status, *_ in found] == [0, 0], found[0][2] + found[1][2]
    return workdir, json.loads(found[0][1])


def test_a_signal_to_one_process_stops_both_and_they_go_on_together(whole, clips, tmp_path):
    workdir = tmp_path / "stopped"
    processes = train(clips, workdir)
    metrics, begin = workdir / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert all(p.poll() is None for p in processes) and time.monotonic() - begin < 300
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    found = ends(processes)
    answers = [json.loads(out) for _, out, _ in found]
    assert [status for status, *_ in found] == [1, 1] and not answers[0]["ok"]
    assert answers[0]["step"] == answers[1]["step"] < 12
    found = ends(train(clips, workdir))
    assert [status for status, *_ in found] == [0, 0], found[0][2] + found[1][2]
    assert rows(workdir) == rows(whole[0])
    assert json.loads(found[1][1])["text_to_video"] == whole[1]["text_to_video"]


def test_one_process_scores_as_two_and_may_not_go_on_for_them(whole, clips, run_cli):
    workdir, answer = whole
    status, out, err = run_cli("eval", f"--workdir={workdir}", "--json")
    assert status == 0, err
    for way in ("text_to_video", "video_to_text", "counts"):
        assert json.loads(out)[way] == answer[way]
    given = (*TINY, f"--config.data.root={clips}", f"--workdir={workdir}")
    more = ("--config.train.steps=12", "--config.train.eval_every=12")
    status, _, err = run_cli("train", *given, *more)
    assert status == 2 and "holds a run of 2 processes, now 1" in err

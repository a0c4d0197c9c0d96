"""Two real processes: the numbers of one device, and runs that are stopped and go on together."""

import functools
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import COMPILED, ROOT
from one_of_two import LAYOUTS, RUN_STEPS, STEPS
from small import quick_compile  # noqa: F401
from test_step import MODEL, OPTIMIZER, batch_of, random_params
from test_train import TINY, rows

from data import shapes
from hvp_jax import names, step


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "clips"
    shapes.make(str(root), seed=5, train=12, val=3, test=5)
    return root


def train_flags(clips) -> list[str]:
    given = [*TINY, f"--config.data.root={clips}", "--config.eval.batch_size=2"]
    return [*given, f"--config.train.steps={RUN_STEPS}", f"--config.train.eval_every={RUN_STEPS}"]


@pytest.fixture(scope="module")
def together(clips, tmp_path_factory):
    """The folder that two processes have worked in."""
    folder, address = tmp_path_factory.mktemp("two"), free_address()
    given = f"Path({str(folder)!r}), {['train', *train_flags(clips)]!r}"
    script = "import sys; from pathlib import Path; sys.path[:0] = ['tests', '.']; "
    script += f"import one_of_two as o; o.main({address!r}, int(sys.argv[1]), {given})"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(i)],
            cwd=ROOT,
            env=os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": "4"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    try:
        errors = [p.communicate(timeout=300)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], errors[0] + errors[1]
    return folder


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
def test_two_processes_of_four_devices_give_the_numbers_of_one(together, alone, layout):
    with np.load(together / "steps.npz") as file:
        found = {name: file[name] for name in file.files if name.startswith(layout + "/")}
    assert len(found) == len(alone) > 40
    for name, expected in alone.items():
        error = {"rtol": 1e-5, "atol": 1e-5 if name.startswith("params/") else 0}
        np.testing.assert_allclose(found[f"{layout}/{name}"], expected, err_msg=name, **error)


def test_a_signal_to_one_process_stops_both_and_they_go_on_together(together):
    answers = [json.loads((together / f"answers_{i}.json").read_text()) for i in (0, 1)]
    for whole, stopped, resumed in answers:
        assert stopped["ok"] is False and stopped["step"] < RUN_STEPS == resumed["step"]
        for way in ("text_to_video", "video_to_text", "counts"):
            assert resumed[way] == whole[way] == answers[0][0][way]
    assert "stopped by a signal to another process" in answers[0][1]["text"]
    assert answers[0][1]["step"] == answers[1][1]["step"]
    assert rows(together / "stopped") == rows(together / "whole")
    assert [row["step"] for row in rows(together / "whole") if "loss" in row] == [
        *range(1, RUN_STEPS + 1)
    ]


def test_one_process_scores_as_two_and_may_not_go_on_for_them(together, clips, run_cli):
    workdir = together / "whole"
    answer = json.loads((together / "answers_0.json").read_text())[0]
    status, out, err = run_cli("eval", f"--workdir={workdir}", "--json")
    assert status == 0, err
    for way in ("text_to_video", "video_to_text", "counts"):
        assert json.loads(out)[way] == answer[way]
    status, _, err = run_cli("train", *train_flags(clips), f"--workdir={workdir}")
    assert status == 2 and "holds a run of 2 processes, now 1" in err

"""Two real processes compute the same numbers as one device."""

import functools
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.train_step import train_step
from tests.helpers.command import COMPILED, ROOT
from tests.helpers.golden_runs import open_shortened, write_run
from tests.helpers.one_of_two import PARTITIONERS, STEPS, scores
from tests.helpers.small import random_params
from tests.helpers.train_steps import MODEL, OPTIMIZER, batch_of

pytestmark = pytest.mark.usefixtures("quick_compile")


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def run_two(command, devices: int) -> list[str]:
    """Runs Python with `command(process)` for processes 0 and 1; returns what each prints."""
    environment = os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": str(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, *command(i)], cwd=ROOT, env=environment, **pipes)
        for i in (0, 1)
    ]
    try:
        outputs = [p.communicate(timeout=600) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], outputs[0][1] + outputs[1][1]
    return [out for out, _ in outputs]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The results of two processes with four devices each."""
    out, address = tmp_path_factory.mktemp("two") / "results.npz", free_address()
    script = "import sys; sys.path[:0] = ['.']; from tests.helpers import one_of_two as o; "
    script += f"o.main({address!r}, int(sys.argv[1]), {str(out)!r})"
    run_two(lambda i: ["-c", script, str(i)], devices=4)
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def two_replays(tmp_path_factory):
    """The first 12 steps of a golden run, and what two processes compute of it."""
    folder, address = tmp_path_factory.mktemp("replays"), free_address()
    golden, out = write_run(folder / "run.npz", 12), folder / "results.npz"
    script = "import sys; sys.path[:0] = ['.']; from tests.helpers import one_of_two as o; "
    script += f"from pathlib import Path; o.replay_run({address!r}, int(sys.argv[1]), "
    script += f"Path({str(golden)!r}), Path({str(out)!r}))"
    run_two(lambda i: ["-c", script, str(i)], devices=4)
    with np.load(out) as file:
        return open_shortened(12), {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def one_device():
    """The results of the same five steps on one device, with plain `jit`."""
    params = random_params(MODEL, *batch_of(0))
    state, results = train_state.create_train_state(params, OPTIMIZER), {"losses": [], "norms": []}
    spec = step_spec.StepSpec(model=MODEL, optimizer=OPTIMIZER, seed=3)
    step = jax.jit(functools.partial(train_step, spec=spec))
    for i in range(STEPS):
        state, metrics = step(state, batch_of(i))
        results["losses"].append(metrics["loss"])
        results["norms"].append(metrics["grad_norm"])
    params = flatten_dict(jax.device_get(state.params), sep="/")
    return results | {f"params/{name}": x for name, x in params.items()}


def test_two_processes_of_four_devices_match_one_device(two_processes, one_device):
    """With weights and moments sharded, in float32, and with noise."""
    assert two_processes.keys() == one_device.keys() | {"scores"} and len(one_device) > 40
    for name, expected in one_device.items():
        tolerance = {"rtol": 1e-5, "atol": 1e-5 if name.startswith("params/") else 0}
        np.testing.assert_allclose(two_processes[name], expected, err_msg=name, **tolerance)


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_two_processes_follow_a_run_of_pytorch(two_replays, partitioner):
    """In float64: past the warm-up, through updates whose gradient is clipped."""
    run, results = two_replays
    for name, expected in run.expected.items():
        ours = results[f"{partitioner}/{name}"]
        tolerance = 1e-11 * np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=name)
    assert len(run.expected) == 8 and run.expected["grad_norm"].min() > 1


def test_two_processes_give_the_scores_of_one(two_processes):
    """Each encodes every other clip; two does not divide five."""
    expected = scores(Partitioner("pmap", devices=jax.devices()[:1]))
    assert expected.shape == (5, 5) and np.ptp(expected) > 1e-3
    np.testing.assert_allclose(two_processes["scores"], expected, rtol=1e-6, atol=1e-7)
    assert (np.argsort(two_processes["scores"]) == np.argsort(expected)).all()

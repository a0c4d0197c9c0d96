"""Two real processes: the numbers of one device, and runs that are stopped and go on together."""

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
from tests.helpers.one_of_two import LAYOUTS, STEPS, scores
from tests.helpers.small import random_params
from tests.helpers.train_steps import MODEL, OPTIMIZER, batch_of

pytestmark = pytest.mark.usefixtures("quick_compile")


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def in_two(command, devices: int) -> list[str]:
    """Runs Python with `command(process)` in both; what each says on stdout."""
    environment = os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": str(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, *command(i)], cwd=ROOT, env=environment, **pipes)
        for i in (0, 1)
    ]
    try:
        found = [p.communicate(timeout=300) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], found[0][1] + found[1][1]
    return [out for out, _ in found]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes of four devices each have computed."""
    out, address = tmp_path_factory.mktemp("two") / "found.npz", free_address()
    script = "import sys; sys.path[:0] = ['.']; from tests.helpers import one_of_two as o; "
    script += f"o.main({address!r}, int(sys.argv[1]), {str(out)!r})"
    in_two(lambda i: ["-c", script, str(i)], devices=4)
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def alone():
    """The same five steps on one device, laid over nothing."""
    params = random_params(MODEL, *batch_of(0))
    state, found = train_state.create_train_state(params, OPTIMIZER), {"losses": [], "norms": []}
    spec = step_spec.StepSpec(MODEL, OPTIMIZER, seed=3)
    step = jax.jit(functools.partial(train_step, spec=spec))
    for i in range(STEPS):
        state, metrics = step(state, batch_of(i))
        found["losses"].append(metrics["loss"])
        found["norms"].append(metrics["grad_norm"])
    after = flatten_dict(jax.device_get(state.params), sep="/")
    return found | {f"params/{name}": x for name, x in after.items()}


@pytest.mark.parametrize("partitioner", LAYOUTS)
def test_two_processes_of_four_devices_give_the_numbers_of_one(together, alone, partitioner):
    found = [name for name in together if name.startswith(partitioner + "/")]
    assert len(found) == len(alone) > 40
    for name, expected in alone.items():
        error = {"rtol": 1e-5, "atol": 1e-5 if name.startswith("params/") else 0}
        ours = together[f"{partitioner}/{name}"]
        np.testing.assert_allclose(ours, expected, err_msg=name, **error)


def test_two_processes_score_as_one(together):
    """Each encodes every other clip; five do not divide by two."""
    ours = scores(Partitioner("pmap", devices=jax.devices()[:1]))
    assert ours.shape == (5, 5) and np.ptp(ours) > 1e-3
    np.testing.assert_allclose(together["scores"], ours, rtol=1e-6)
    assert (np.argsort(together["scores"]) == np.argsort(ours)).all()

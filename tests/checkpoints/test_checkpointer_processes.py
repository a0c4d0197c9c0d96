"""Checkpoints on a full disk and of two processes, each in processes of their own."""

import json
import os
import socket
import subprocess
import sys

import pytest

from hvp_jax.checkpoints.checkpointer import Checkpointer
from tests.helpers.command import ROOT, run_command
from tests.helpers.saved_states import batches_at, same, state_of, steps_of

FULL_DISK = """
import resource, signal, sys
sys.path[:0] = ["."]
from hvp_jax.checkpoints.checkpointer import Checkpointer
from data.errors import DataError
from tests.helpers import saved_states as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Checkpointer(sys.argv[1], max_to_keep=1) as checkpoints:
    checkpoints.save(10, t.state_of(10), t.batches_at(10))
    checkpoints.select_step()
try:
    with Checkpointer(sys.argv[1], max_to_keep=1) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        checkpoints.save(20, t.state_of(20), t.batches_at(20))
        if sys.argv[3] == "next":
            checkpoints.save(30, t.state_of(30), t.batches_at(30))
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("limit, when", [("0", "next"), ("3000", "end")])
def test_a_full_disk_is_reported_in_one_line_and_the_last_step_stays(tmp_path, limit, when):
    """A limit on file sizes stands in for a full disk: writes fail in the same way."""
    status, out, err = run_command("-c", FULL_DISK, tmp_path, limit, when, JAX_NUM_CPU_DEVICES="8")
    assert status == 0 and "Traceback" not in err, err
    assert out.strip() == (
        f"checkpoint of step 20 could not be written to {tmp_path}/checkpoints: no space left; "
        "the last good one is step 10: free some space and run the same command again"
    )
    batches = batches_at(0)
    with Checkpointer(tmp_path, max_to_keep=1) as checkpoints:
        state, step = checkpoints.restore_latest(state_of(0), batches, print)
        assert step == 10 and same(state, state_of(10))
        checkpoints.save(20, state_of(20), batches)
    assert steps_of(tmp_path) == [20]


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import numpy as np
sys.path[:0] = ["."]
workdir, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
import jax
jax.distributed.initialize(f"localhost:{port}", 2, index)
from hvp_jax.checkpoints.checkpointer import Checkpointer
from tests.helpers import saved_states as t
from jax.experimental.multihost_utils import sync_global_devices

def global_state(seed):
    def put(x):
        x = np.asarray(x)
        sharding = t.SHARDED if x.ndim else t.REPLICATED
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    before = t.SHARDED, t.REPLICATED
    t.SHARDED = t.REPLICATED = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    state = t.state_of(seed)
    t.SHARDED, t.REPLICATED = before
    return jax.tree.map(put, state)

with Checkpointer(workdir, max_to_keep=3) as checkpoints:
    for step in (10, 20, 30):
        checkpoints.save(step, global_state(step), t.batches_at(step + index))
sync_global_devices("saved")
if index == 0:
    steps = Path(workdir, "checkpoints")
    t.advance_iterator_state(steps / "30" / "data" / "process_1-of-2.json")
    t.flip_bit(t.values_file(steps / "20" / "params", process=1))
sync_global_devices("damaged")
warnings, batches = [], t.batches_at(0)
with Checkpointer(workdir, max_to_keep=3) as checkpoints:
    state, step = checkpoints.restore_latest(global_state(0), batches, warnings.append)
    assert next(batches) == next(t.batches_at(10 + index))
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(global_state(10)), strict=True)
    for a, b in pairs:
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert np.array_equal(x.data, y.data)
    checkpoints.save(20, state, batches)
    print(json.dumps([step, warnings, checkpoints.select_step()]))
"""


def test_two_processes_agree_on_the_step(tmp_path):
    """First one process finds its iterator state changed, then both find an array changed."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), port]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([*command, str(index)], cwd=ROOT, env=environment, **pipes)
        for index in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    (step, warnings, chosen), (step_1, warnings_1, _) = (
        json.loads(out.splitlines()[-1]) for out, _ in ended
    )
    assert step == step_1 == 10 and chosen["step"] == 20
    assert "process 1 cannot read its part" in warnings[0]
    assert "json has changed" in warnings_1[0]
    # The reason depends on the damaged byte and on the process that reads it; the outcome does not.
    for lines in (warnings, warnings_1):
        assert "/20: " in lines[1] and "trying step 10" in lines[1]
    assert steps_of(tmp_path) == [10, 20] and len(list((tmp_path / "damaged").iterdir())) == 2

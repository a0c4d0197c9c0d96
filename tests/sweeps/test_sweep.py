"""The verb `sweep`, run as a command that trains."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from data.synthetic import shapes
from tests.helpers.command import COMPILED, ROOT

SWEEP = """
from configs.sweeps.base import Sweep, one_at_a_time
from configs.folder import get_config

def get_sweep():
    base = get_config()
    base.model.variant = "tiny"
    base.model.taps = (4,)
    base.distillation.stages = 1
    base.data.max_frames = 2
    base.train.batch_size = base.eval.batch_size = 8
    base.train.steps = 4
    base.train.eval_every = base.train.checkpoint_every = 2
    base.train.log_every = 1
    return Sweep(base, one_at_a_time({"optimizer.weight_decay": (0.1,)}), seeds=(3,))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a data set of a few clips and a sweep of two settings."""
    folder = tmp_path_factory.mktemp("sweep")
    shapes.make_dataset(str(folder / "clips"), seed=5, train=16, val=4, test=6)
    (folder / "decay.py").write_text(SWEEP)
    return folder


def start(folder, name):
    flags = [f"--config={folder / 'decay.py'}", f"--config.data.root={folder / 'clips'}"]
    flags += [f"--workdir={folder / name}", "--jobs=2", "--json"]
    return subprocess.Popen(
        [sys.executable, "run.py", "sweep", *flags],
        cwd=ROOT,
        env=os.environ | COMPILED | {"JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(done) -> dict:
    """The table that the command printed, without what was measured by a clock."""
    result = json.loads(done)
    for setting in result["settings"]:
        setting["cost"].pop("step_ms")
        setting["cost"].pop("peak_memory_mib")
    return result


def test_a_killed_sweep_goes_on_to_the_table_of_an_undisturbed_one(folder):
    killed = start(folder, "killed")
    rows = folder / "killed/runs/weight_decay=0.1/seed-3/metrics.jsonl"
    while not (rows.exists() and '"step": 2' in rows.read_text()):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    tables = {}
    for name in ("killed", "undisturbed"):
        done = start(folder, name)
        out, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
        tables[name] = table(out)
        assert json.loads((folder / name / "sweep.json").read_text())["failed"] == []
    assert tables["killed"] == tables["undisturbed"]
    base, decay = tables["killed"]["settings"]
    assert (base["name"], decay["name"]) == ("base", "weight_decay=0.1")
    log = (rows.parent / "log.txt").read_text()
    assert log.count("$ ") == 2 and "stopped by SIGTERM at step" in log

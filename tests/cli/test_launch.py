"""The commands that the launch scripts run on the hosts of a fake cluster."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.command import ROOT

LAUNCH = ROOT / "launch"
ARGUMENTS = ("train", "--config=a b.py", "--config.model.taps=(1, 6)", "--workdir=it's $HOME")


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def host(tmp_path):
    """A host's home folder, whose fake Python records its arguments and fails the first time."""
    executable(
        tmp_path / "bin" / "gcloud",
        '#!/bin/bash\nfor a; do case $a in --command=*) cd "$HOST"; bash -c "${a#--command=}";; '
        "esac; done\n",
    )
    executable(tmp_path / "bin" / "sleep", "#!/bin/bash\n/bin/sleep 0.05\n")
    executable(
        tmp_path / "hvp" / ".venv" / "bin" / "python",
        '#!/bin/bash\nprintf "%s\\n" "$@" >> arguments\n'
        "[ -e before ] && { while [ -e wait ]; do /bin/sleep 0.02; done; exit 0; }\n"
        "touch before; exit 1\n",
    )
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return tmp_path, os.environ | {"PATH": path, "HOST": str(tmp_path), "NAME": "n", "ZONE": "z"}


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def run(script, *arguments, env):
    return subprocess.run(
        [LAUNCH / script, *arguments], env=env, capture_output=True, text=True, timeout=60
    )


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_tpu_host_reruns_a_failed_command_with_the_same_arguments_until_stopped(host):
    home, env = host
    (home / "hvp" / "wait").touch()
    done = run("tpu.sh", "start", *ARGUMENTS, env=env)
    assert done.returncode == 0, done.stderr
    recorded, twice = home / "hvp" / "arguments", ["run.py", *ARGUMENTS] * 2
    wait_until(lambda: recorded.exists() and recorded.read_text().splitlines() == twice)
    process = int((home / "hvp" / "run.pid").read_text())
    assert alive(process)
    assert run("tpu.sh", "stop", env=env).returncode == 0
    wait_until(lambda: not alive(process))


def test_an_unknown_subcommand_prints_the_usage(host):
    done = run("tpu.sh", "begin", env=host[1])
    assert done.returncode == 2 and "create | install | start" in done.stderr


def test_a_slurm_node_uses_all_its_gpus(tmp_path):
    executable(
        tmp_path / "srun", '#!/bin/bash\necho "$JAX_LOCAL_DEVICE_IDS"\nprintf "%s\\n" "$@"\n'
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "4"}
    lines = run("slurm.sh", *ARGUMENTS, env=env).stdout.splitlines()
    assert lines[0] == "0,1,2,3"
    assert lines[-5:] == ["run.py", *ARGUMENTS]
    del env["SLURM_GPUS_ON_NODE"]
    done = run("slurm.sh", *ARGUMENTS, env=env)
    assert done.returncode != 0 and "--gpus-per-node" in done.stderr

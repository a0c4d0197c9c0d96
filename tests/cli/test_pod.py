"""Every command of docs/pod.md runs against stand-ins, and every one of run.py is one it takes."""

import os
import re
import subprocess

import pytest

from hvp_jax.cli import main
from tests.cli.test_launch import GCLOUD, LAUNCH, executable
from tests.helpers.command import ROOT

POD = (ROOT / "docs" / "pod.md").read_text()
# Records the arguments of run.py; the first `train` on a host runs until it is stopped.
PYTHON = r"""#!/bin/bash
[ "$1" = run.py ] || exit 0
{ printf "%s\0" "${@:2}"; printf "\n"; } >> "$HOST/run.py"
case "$PWD $2" in
*/hvp\ train) [ -e before ] || { touch before; while true; do /bin/sleep 0.02; done; } ;;
esac
"""
# What they are given to run, they run.
SBATCH = r"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done; SLURM_GPUS_ON_NODE=8 exec "$@"
"""
XPK = '#!/bin/bash\nfor a; do case $a in --command=*) bash -c "${a#--command=}";; esac; done\n'
NOTHING = ("docker", "kubectl", "tensorboard", "python3", "python3.11", "sudo", "git", "tail")


def commands() -> str:
    blocks = re.findall(r"^```sh\n(.*?)^```", POD, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 10
    return "\n".join(blocks)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The arguments that run.py got from all commands of the page, one after another."""
    home = tmp_path_factory.mktemp("home")
    for name in NOTHING:
        executable(home / "bin" / name, "#!/bin/bash\n")
    executable(home / "bin" / "sleep", "#!/bin/bash\n/bin/sleep 0.05\n")
    executable(home / "bin" / "gcloud", GCLOUD)
    executable(home / "bin" / "xpk", XPK)
    for name in ("sbatch", "srun"):
        executable(home / "bin" / name, SBATCH)
    for path in ("bin/python", ".venv/bin/python", "hvp/.venv/bin/python"):
        executable(home / path, PYTHON)
    executable(home / ".venv" / "bin" / "pip", "#!/bin/bash\n")
    (home / "launch").symlink_to(LAUNCH)
    (home / "states").write_text("ACTIVE\n")
    environment = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "HOST": str(home)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands().replace("/shared", str(home))],
        cwd=home, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the run has finished" in done.stdout
    recorded = (home / "run.py").read_text().split("\0\n")[:-1]
    return [line.split("\0") for line in recorded]


def test_every_command_runs_and_run_py_takes_its_arguments(run, monkeypatch):
    monkeypatch.setattr(main.distributed, "initialize", lambda flags: None)
    monkeypatch.chdir(ROOT)
    verbs = []
    for arguments in run:
        main.check(arguments)
        verbs.append(arguments[0])
    # The slice's start and the spot slice's, XPK's, Slurm's, and two by hand.
    assert sorted(verbs) == ["prepare"] * 2 + ["report"] + ["train"] * 6


def test_every_subcommand_of_tpu_sh_is_on_the_page():
    usage = (LAUNCH / "tpu.sh").read_text().partition("set -euo")[0]
    names = set(re.findall(r"\b(create|install|start|keep|watch|stop|delete)\b", usage))
    used = set(re.findall(r"^(?:\w+=\S+ )?launch/tpu.sh (\w+)", commands(), re.MULTILINE))
    assert used == names and len(names) == 7


def test_the_manifest_of_gke_starts_a_run_that_the_program_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    yaml = pytest.importorskip("yaml")
    text = (LAUNCH / "gke.yaml").read_text()
    job = yaml.safe_load(text)
    assert job["kind"] == "JobSet" and job["apiVersion"].startswith("jobset.x-k8s.io/")
    (replicated,) = job["spec"]["replicatedJobs"]
    hosts = replicated["template"]["spec"]
    pod = hosts["template"]["spec"]
    (container,) = pod["containers"]
    main.check(container["args"])
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    columns, rows = map(int, topology.split("x"))
    assert hosts["parallelism"] == hosts["completions"] == columns * rows // chips
    assert pod["restartPolicy"] == "Never" and hosts["backoffLimit"] == 0
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    # A usage error is not tried again.
    (rule,) = hosts["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    # Every value that is to change has its comment.
    for word in ("BUCKET", "PROJECT", "replicas", "tpu-topology", "batch_size"):
        assert all("  # " in line for line in text.splitlines() if word in line), word


def test_the_image_has_all_that_the_program_imports():
    text = (LAUNCH / "Dockerfile").read_text()
    copied = {
        name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()
    }
    assert copied >= {"run.py", "configs", "data", "hvp_jax"}
    for name in re.findall(r"-r (\S+)", text):
        assert (ROOT / name).exists(), name

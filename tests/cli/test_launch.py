"""The commands that the launch scripts run on the hosts of a fake cluster."""

import os
import signal
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


# gcloud with hosts of a fake slice in $HOST: `ssh` runs its command there. `describe` takes the
# next line of $HOST/states, and the last one again and again; `delete` takes the machines away.
# All calls but those of `ssh` are recorded.
GCLOUD = r"""#!/bin/bash
cd "$HOST"
case "$*" in
*" ssh "*) for a; do case $a in --command=*) bash -c "${a#--command=}"; exit;; esac; done ;;
*" describe "*)
  state=$(head -n 1 states); [ "$(wc -l < states)" = 1 ] || sed -i 1d states
  [ "$state" = NOT_FOUND ] && { echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; }
  echo "$state" ;;
*) echo "$*" >> calls
  [[ "$*" != *" delete "* ]] || { touch hvp/deleted; rm -f hvp/run.pid hvp/run.status; } ;;
esac
"""
# The Python of a host: records its arguments and fails the first time; while there is a file `wait`
# it does not end, unless its machine is taken away.
PYTHON = r"""#!/bin/bash
[ "$1" = -c ] && exit
printf "%s\n" "$@" >> arguments
[ -e before ] && {
  while [ -e wait ]; do
    [ -e deleted ] && { rm wait; kill -KILL 0; }
    /bin/sleep 0.02
  done
  exit "$(cat status 2> /dev/null || echo 0)"
}
touch before; exit 1
"""


@pytest.fixture
def host(tmp_path):
    """The home folder of a host, with stand-ins for what it runs."""
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    executable(tmp_path / "bin" / "sleep", "#!/bin/bash\n/bin/sleep 0.05\n")
    for name in ("sudo", "git", "python3"):
        executable(tmp_path / "bin" / name, "#!/bin/bash\n")
    executable(tmp_path / "hvp" / ".venv" / "bin" / "python", PYTHON)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    variables = {"PATH": path, "HOST": str(tmp_path), "NAME": "n", "ZONE": "z", "TYPE": "v4-32"}
    variables |= {"VERSION": "v", "BUCKET": "gs://b", "REPOSITORY": "r", "SPOT": "1"}
    return tmp_path, os.environ | variables


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


def test_a_spot_slice_is_asked_for_again_until_the_run_has_finished(host):
    home, env = host
    states = ["NOT_FOUND", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "NOT_FOUND"]
    (home / "states").write_text("\n".join([*states, "ACTIVE", ""]))
    (home / "hvp" / "wait").touch()
    (home / "hvp" / "before").touch()
    done = run("tpu.sh", "keep", *ARGUMENTS, env=env)
    assert done.returncode == 0, done.stderr
    calls = [line.split()[3] for line in (home / "calls").read_text().splitlines()]
    assert calls == ["create", "delete", "create"]
    assert (home / "calls").read_text().count(" --spot") == 2
    # Once on each of the two slices, of which the first was taken away.
    assert (home / "hvp" / "arguments").read_text().splitlines() == ["run.py", *ARGUMENTS] * 2
    said = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert said == [
        *("n: NONE", "asking for v4-32, spot", "n: WAITING_FOR_RESOURCES"),
        *("n: ACTIVE, run none", "installing", "starting", "n: ACTIVE, run running"),
        *("n: SUSPENDED", "deleting it, to ask again", "n: NONE", "asking for v4-32, spot"),
        *("n: ACTIVE, run none", "installing", "starting"),
        *[line for line in said if line == "n: ACTIVE, run running"][1:],  # unless it ends at once
        *("n: ACTIVE, run 0", "the run has finished; launch/tpu.sh delete ends the slice"),
    ]
    assert all(line.partition(" ")[0].endswith("Z") for line in done.stdout.splitlines())


def test_a_run_that_is_used_wrongly_is_not_tried_again(host):
    home, env = host
    (home / "states").write_text("ACTIVE\n")
    (home / "hvp" / "before").touch()
    (home / "hvp" / "status").write_text("2")
    done = run("tpu.sh", "keep", *ARGUMENTS, env=env)
    assert done.returncode == 2 and "the run has failed" in done.stdout
    assert (home / "hvp" / "arguments").read_text().splitlines() == ["run.py", *ARGUMENTS]
    assert not (home / "calls").exists()


def test_who_leaves_the_loop_leaves_the_run_as_it_is(host):
    home, env = host
    (home / "states").write_text("ACTIVE\n")
    (home / "hvp" / "wait").touch()
    (home / "hvp" / "before").touch()
    command = [LAUNCH / "tpu.sh", "keep", *ARGUMENTS]
    keep = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell cannot trap a signal that was ignored when it started, as under nohup.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until((home / "hvp" / "arguments").exists)
    os.killpg(keep.pid, signal.SIGINT)
    out, _ = keep.communicate(timeout=60)
    assert keep.returncode == 130 and "left: slice and run go on" in out
    assert alive(int((home / "hvp" / "run.pid").read_text()))
    assert run("tpu.sh", "stop", env=env).returncode == 0


def test_several_slices_run_one_command(host):
    home, env = host
    (home / "states").write_text("ACTIVE\n")
    (home / "hvp" / "before").touch()
    env |= {"SLICES": "2"}
    assert run("tpu.sh", "create", env=env).stdout == "ACTIVE\n"
    assert "--node-count=2 --node-prefix=n " in (home / "calls").read_text()
    (home / "bin" / "gcloud").write_text('#!/bin/bash\necho "$5" "$7" >> "$HOST/calls"\n')
    (home / "calls").unlink()
    assert run("tpu.sh", "install", env=env).returncode == 0
    assert sorted((home / "calls").read_text().splitlines()) == [
        "n-0 --worker=all",
        "n-1 --worker=all",
    ]
    (home / "bin" / "gcloud").write_text('#!/bin/bash\n[ "$5" != n-1 ]\n')
    assert run("tpu.sh", "install", env=env).returncode == 1


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

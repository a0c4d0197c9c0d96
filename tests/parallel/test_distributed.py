"""How processes find each other, and which flags are invalid."""

import os

import pytest

from data.errors import UsageError
from hvp_jax.cli import main
from hvp_jax.parallel import distributed
from tests.helpers.command import ROOT

TRAIN = ("train", f"--config={ROOT / 'configs' / 'folder.py'}", "--workdir=never-made")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2", "--process=0"], "--coordinator is missing"),
        (["--coordinator=a:1", "--process=0"], "--processes is missing"),
        (["--coordinator=a", "--processes=2", "--process=0"], "--coordinator=a is not HOST:PORT"),
        (["--coordinator=a:1", "--processes=two", "--process=0"], "--processes=two is not"),
        (["--coordinator=a:1", "--processes=0", "--process=0"], "--processes=0 is not"),
        (["--coordinator=a:1", "--processes=2", "--process=2"], "--process=2 must be from 0 to 1"),
        (["--coordinator=a:1", "--processes=2", "--process=-1"], "--process=-1 must be from 0"),
    ],
)
def test_incomplete_or_invalid_flags(flags, message):
    with pytest.raises(UsageError, match=message):
        main.check([*TRAIN, *flags])


def test_only_verbs_for_several_processes_take_the_flags():
    with pytest.raises(UsageError, match="prepare has no flag --processes"):
        main.check(["prepare", TRAIN[1], "--processes=2"])


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of `jax.distributed.initialize`."""
    import jax

    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    prefixes = ("SLURM_", "OMPI_", "PMI_", "JAX_CO", "JAX_LOCAL")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)
    return calls


STEP = {"JOB_ID": "7", "NTASKS": "2", "PROCID": "0", "LOCALID": "0", "STEP_NODELIST": "a,b"}
SRUN = {f"SLURM_{name}": value for name, value in STEP.items()} | {"SLURM_STEP_NUM_TASKS": "2"}


def set_slurm(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_flags_are_passed_to_jax(calls):
    distributed.initialize(distributed.parse_flags("host:1234", "2", "1"))
    (call,) = calls
    assert call.pop("heartbeat_timeout_seconds") == distributed.HEARTBEAT_TIMEOUT_SECONDS
    assert call == {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1}


def test_an_ordinary_machine_and_a_slurm_step_of_one_task_connect_to_nothing(calls, monkeypatch):
    distributed.initialize(None)
    set_slurm(monkeypatch, JOB_ID="7", NTASKS="8", STEP_NUM_TASKS="1")
    distributed.initialize(None)
    assert calls == []


def test_under_srun_a_task_uses_its_gpu_or_all_gpus_of_its_node(calls, monkeypatch):
    set_slurm(monkeypatch, **STEP)
    set_slurm(monkeypatch, STEP_NUM_TASKS="16", STEP_TASKS_PER_NODE="8(x2)", GPUS_ON_NODE="8")
    distributed.initialize(None)
    set_slurm(monkeypatch, STEP_NUM_TASKS="2", STEP_TASKS_PER_NODE="1(x2)")
    distributed.initialize(None)
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    distributed.initialize(None)
    devices = [call.get("local_device_ids") for call in calls]
    assert devices == [None, list(range(8)), None]


def test_a_failed_connection_names_the_coordinator(monkeypatch):
    import jax

    def fail(**arguments):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UsageError, match="cannot join the other processes at host:1: DEADLINE"):
        distributed.initialize(distributed.parse_flags("host:1", "2", "1"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_JOB_ID is not set: start every process with `srun`"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'.*not a whole number"),
        (SRUN | {"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set"),
        (SRUN | {"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'"),
        (SRUN | {"JAX_COORDINATOR_PORT": "http"}, "JAX_COORDINATOR_PORT is 'http'"),
        (SRUN | {"JAX_LOCAL_DEVICE_IDS": "0-3"}, "JAX_LOCAL_DEVICE_IDS is '0-3'; .* such as 0,1"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes.*--coordinator"),
        ({"PMI_SIZE": "4"}, "mpiexec started 4 processes"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "give --coordinator=a:1 with --processes"),
    ],
)  # fmt: skip
def test_variables_of_a_cluster_that_are_set_in_part(calls, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        distributed.initialize(None)
    assert calls == []


def test_variables_that_are_set_and_empty_count_as_not_set(calls, monkeypatch):
    set_slurm(monkeypatch, STEP_NUM_TASKS="", PROCID="", GPUS_ON_NODE="")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "")
    distributed.initialize(None)
    assert calls == []


def test_a_variable_that_jax_misses_is_named(monkeypatch):
    import jax

    def fail(**arguments):
        raise KeyError("OMPI_COMM_WORLD_LOCAL_RANK")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UsageError, match="OMPI_COMM_WORLD_LOCAL_RANK is not set in the environ"):
        distributed.initialize(distributed.parse_flags("host:1", "2", "1"))


def test_variables_that_jax_reads_beside_the_flags(calls, monkeypatch):
    set_slurm(monkeypatch, **STEP | {"LOCALID": ""})
    with pytest.raises(UsageError, match="SLURM_LOCALID is set and empty"):
        distributed.initialize(distributed.parse_flags("host:1", "2", "1"))
    distributed.initialize(None)  # one process reads none of them
    assert calls == []

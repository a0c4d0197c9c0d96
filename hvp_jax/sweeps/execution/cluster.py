"""Runs as jobs of a cluster, through submitit: one array job with a task for each run."""

import contextlib
import logging
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.monitoring import json_files
from hvp_jax.sweeps.execution.progress import progress_bar, report
from hvp_jax.sweeps.execution.runs import Run, read_object, stop
from hvp_jax.sweeps.execution.stop import Stopped, StopSignal, stop_signal

FOLDER = "cluster"  # of the sweep: what submitit writes, and jobs.json
JOBS_FILE = "jobs.json"
SOURCES = Path(__file__).parents[3]
TIMEOUT_MIN = 24 * 60  # a job that is not done by then saves, and is submitted again
POLL_INTERVAL = 1.0  # seconds

log = logging.getLogger(__name__)


class ClusterRun:
    """What a job executes. The run saves before the time limit, or when the job has to make way."""

    def __init__(self, run: Run):
        self._run = run
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Starts or resumes the run, once no process works in its workdir, and waits for it."""
        while self._run.holder():
            time.sleep(POLL_INTERVAL)
        if not self._run.is_finished():
            self._process = self._run.start()
            self._run.finish(self._process.wait())

    def checkpoint(self) -> Any:
        """What submitit submits again, once the run has saved and ended.

        A signal handler: it may interrupt the waiting, whose lock `Popen.wait` would wait for.
        """
        import submitit

        if self._process is not None:
            stop(self._process)
            with contextlib.suppress(ChildProcessError):  # it has just ended
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(ClusterRun(self._run))


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The executor and the options of submitit in `--cluster=EXECUTOR[:KEY=VALUE,...]`.

    Raises UsageError if it is malformed, or submitit is not installed.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError("--cluster needs submitit: install requirements-cluster.txt") from None
    executor, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UsageError(f"--cluster={text}: {part!r} is not KEY=VALUE")
        options[key] = int(value) if value.isdecimal() else value
    return executor, options


def execute(runs: Sequence[Run], folder: Path, cluster: str, jobs: int | None) -> None:
    """Submits the runs that have not finished and that no job works on, and waits for all jobs.

    `folder` is that of the sweep; `cluster` as in `parse`; at most `jobs` run at a time, or as
    many as the cluster lets. SIGINT and SIGTERM end the waiting, not the jobs, and raise Stopped.
    Raises UsageError if submitit refuses an option.
    """
    name, options = parse(cluster)
    known = _known_jobs(folder, name)
    # Slurm forgets old jobs; a run that has failed has an error.txt.
    jobs_of = {run.name: known[run.name] for run in runs if run.name in known and not run.error()}
    jobs_of = {name: job for name, job in jobs_of.items() if not job.done()}
    new = [run for run in runs if not run.is_finished() and run.name not in jobs_of]
    if new:
        executor = _executor(folder / FOLDER, name, options, jobs)
        for run in new:
            run.forgive()
        with executor.batch():
            submitted = [executor.submit(ClusterRun(run)) for run in new]
        jobs_of |= {run.name: job for run, job in zip(new, submitted, strict=True)}
        ids = {name: job.job_id for name, job in jobs_of.items()}
        json_files.write_json(folder / FOLDER / JOBS_FILE, {"cluster": name, "jobs": ids})
        log.info("submitted %d jobs: %s", len(new), ", ".join(job.job_id for job in submitted))
    with stop_signal() as stopped:
        _wait(runs, jobs_of, stopped)


def _wait(runs: Sequence[Run], jobs_of: dict[str, Any], stopped: StopSignal) -> None:
    waiting = [run for run in runs if run.name in jobs_of]
    with progress_bar(len(runs), len(runs) - len(waiting)) as bar:
        while waiting:
            for run in [run for run in waiting if jobs_of[run.name].done()]:
                job = jobs_of[run.name]
                waiting.remove(run)
                if not run.is_finished() and not run.error():  # the job ended without its Python
                    run.fail(f"job {job.job_id} ended: {job.state}; see {job.paths.stderr}")
                report(bar, run)
            if stopped.name:
                raise Stopped(f"{stopped.name}; {len(waiting)} jobs go on")
            time.sleep(POLL_INTERVAL)


def _executor(folder: Path, name: str, options: dict[str, Any], jobs: int | None) -> Any:
    """A submitit executor; raises UsageError if it does not take the options."""
    import submitit

    limits = {"timeout_min": TIMEOUT_MIN, "name": "sweep"}
    if jobs is not None and name == "slurm":
        limits["slurm_array_parallelism"] = jobs
    # A job starts in the current folder, and imports this package from wherever it is.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        dict.fromkeys([str(SOURCES), *filter(None, inherited)])
    )
    try:
        executor = submitit.AutoExecutor(folder, cluster=name)
        executor.update_parameters(**limits | options)
    except (ValueError, NameError, AssertionError, RuntimeError) as error:
        raise UsageError(f"--cluster={name}: {error}") from None
    return executor


def _known_jobs(folder: Path, name: str) -> dict[str, Any]:
    """The jobs that an earlier sweep has submitted to the same cluster, by the name of their run.

    Those of submitit's local executor are not found again; their runs hold their workdirs.
    """
    import submitit

    record = read_object(folder / FOLDER / JOBS_FILE)
    if name != "slurm" or record.get("cluster") != name:
        return {}
    return {run: submitit.SlurmJob(folder / FOLDER, i) for run, i in record["jobs"].items()}

"""Runs a sweep in a folder, from wherever an earlier attempt has come to.

DIR/manifest.json         the settings and seeds
DIR/configs/SETTING.json  the config of a setting: `train --config=` takes it
DIR/clips, DIR/shards     the built-in clips if they are the data, and the decoded clips
DIR/runs/SETTING/seed-N   the workdirs of the runs, with log.txt, and error.txt if they failed
"""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.config.overrides import load_json
from hvp_jax.config.resolve import resolve
from hvp_jax.config.saved import difference, to_json
from hvp_jax.monitoring import json_files
from hvp_jax.monitoring.workdir_lock import WorkdirLock
from hvp_jax.sweeps import manifest as manifests
from hvp_jax.sweeps.execution import cluster as clusters
from hvp_jax.sweeps.execution import local
from hvp_jax.sweeps.execution.runs import Run
from hvp_jax.sweeps.execution.shards import Preparation, place
from hvp_jax.sweeps.manifest import Manifest, run_folder
from hvp_jax.sweeps.plan import Plan, model_spec

# Where the data is may change from one attempt to the next; what it is may not.
PLACES = ("data.root", "data.videos", "data.annotations", "data.shards", "compile_cache")

log = logging.getLogger(__name__)


def run(
    plan: Plan, folder: Path, *, command: Sequence[str], jobs: int | None, cluster: str | None
) -> list[Run]:
    """Executes all runs that have not finished; returns those that failed.

    `command` is the program with its verbs `train` and `prepare`. `jobs` runs execute at a time,
    by default one; on a cluster, see `clusters.parse`, as many as it lets. Raises UsageError if
    `folder` holds another sweep or another process executes this one, and Stopped after a signal.
    """
    if cluster:
        clusters.parse(cluster)
    with _exclusive(folder):
        configs = copy.deepcopy(plan.configs)
        shards = {}
        for name, config in configs.items():
            try:
                size = resolve(config, model_spec(config)).model.image_size
            except UsageError as error:  # that the weights do not fit
                raise UsageError(f"setting {name}: {error}") from None
            shards[name] = place(config, folder, size)
        _check_same(plan.manifest, configs, folder)
        _write(plan.manifest, configs, folder)

        def execute(runs: Sequence[Run]) -> None:
            if cluster:
                clusters.execute(runs, folder, cluster, jobs)
            else:
                local.execute(runs, jobs or 1)

        runs = _runs(plan.manifest, folder, command)
        todo = []
        for setting, run in runs:
            if run.is_finished():
                run.forgive()  # it has failed here, and then was finished by hand
            else:
                todo.append((setting, run))
        prepared = _prepare({name: shards[name] for name, _ in todo}, folder, command, execute)
        for setting, run in todo:
            if fault := prepared[setting]:
                run.fail(f"its clips cannot be decoded: {fault}")
        # With those that have finished, which the progress counts.
        execute([run for name, run in runs if not prepared.get(name)])
    return [run for _, run in runs if not run.is_finished()]


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Only one process executes a sweep; not by `training.exclusive`, which starts the devices."""
    lock = WorkdirLock(folder)
    try:
        while not lock.attempt():
            time.sleep(lock.poll)
        if lock.refusal:
            raise UsageError(lock.refusal)
        yield
    finally:
        lock.release()


def _check_same(manifest: Manifest, configs: dict[str, ConfigDict], folder: Path) -> None:
    """Raises UsageError, with the difference, if the folder holds another sweep."""
    if not (folder / manifests.MANIFEST_FILE).exists():
        return
    before = manifests.read(folder)
    found = manifests.differences(before, manifest)
    for name in set(before.names()) & set(configs):
        if (path := _config_path(folder, name)).exists():
            found += [
                f"config.{key} of its setting {name} is {old!r}, not {new!r}"
                for key, old, new in difference(load_json(path), configs[name])
                if key not in (*PLACES, "seed")
            ]
    if found:
        raise UsageError(
            f"{folder} holds another sweep: {'; '.join(dict.fromkeys(found))}. Use another workdir"
        )


def _write(manifest: Manifest, configs: dict[str, ConfigDict], folder: Path) -> None:
    for name, config in configs.items():
        path = _config_path(folder, name)
        json_files.make_workdir(path.parent)
        json_files.write_text_atomically(path, to_json(config))
    manifests.write(folder, manifest)


def _config_path(folder: Path, setting: str) -> Path:
    return folder / "configs" / f"{setting}.json"


def _runs(manifest: Manifest, folder: Path, command: Sequence[str]) -> list[tuple[str, Run]]:
    """(setting, run) of all runs: the first seed of every setting, then the second."""
    runs = []
    for seed in manifest.seeds:
        for setting in manifest.names():
            workdir = run_folder(folder, setting, seed)
            config = f"--config={_config_path(folder, setting)}"
            arguments = ("train", config, f"--config.seed={seed}", f"--workdir={workdir}")
            runs.append((setting, Run(f"{setting}/seed-{seed}", workdir, (*command, *arguments))))
    return runs


def _prepare(
    shards: dict[str, str],
    folder: Path,
    command: Sequence[str],
    execute: Callable[[Sequence[Run]], None],
) -> dict[str, str]:
    """Writes the shards that are missing, each once; returns each setting's error, "": none.

    `shards` has the folder of the shards of each setting that needs them, "" if it reads others.
    """
    preparations: dict[str, Run] = {}
    for setting, directory in shards.items():
        if directory and directory not in preparations:
            config = f"--config={_config_path(folder, setting)}"
            name = f"clips of {Path(directory).name}"
            preparations[directory] = Preparation(
                name, Path(directory), (*command, "prepare", config)
            )
    unfinished = [run for run in preparations.values() if not run.is_finished()]
    if unfinished:
        log.info("decoding clips; progress is in %s", ", ".join(str(r.log) for r in unfinished))
        execute(unfinished)
    errors = {"": ""} | {directory: run.error() for directory, run in preparations.items()}
    return {setting: errors[directory] for setting, directory in shards.items()}

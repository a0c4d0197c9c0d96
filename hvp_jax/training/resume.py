"""The record that a run writes into its workdir, and whether a run may resume there."""

import json
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from data import records
from data.errors import DataError, UsageError
from data.records import Clip
from data.storage import files as storage
from data.storage.path import Path, PathLike
from hvp_jax.checkpoints import checkpointer, model_card
from hvp_jax.config.saved import difference, from_json
from hvp_jax.models.model_spec import ModelSpec
from hvp_jax.monitoring import environment, json_files
from hvp_jax.training.optimization.schedules import AFTER_THE_END
from hvp_jax.training.step_spec import schedule_steps, steps_per_epoch

# Keys, or beginnings of keys, that may change when a run resumes: they affect where files are and
# what is kept, logged or scored, but no update.
MAY_CHANGE = (
    *("eval.", "bench", "parallel", "fsdp", "profile", "topology", "compile_cache", "model.fused"),
    *("data.root", "data.videos", "data.shards", "data.annotations", "data.exclude"),
    *("data.beam_options", "train.checkpoint_every", "train.eval_every", "train.log_every"),
    *("train.max_to_keep", "train.keep_period", "train.select_by"),
    *("train.max_skipped_updates", "train.stall_timeout"),
)
# These may change as long as the length of the schedule stays the same.
SCHEDULE = ("train.steps", "train.epochs", "optimizer.schedule_epochs")


def fingerprint(clips: Sequence[Clip]) -> dict:
    """Identifies a run's training and validation data: captions, segments and order, not pixels."""
    return {
        "clips": len(clips),
        "sha256": records.fingerprint(clips),
        "processes": jax.process_count(),  # each has its own iterator state
    }


def check_resumable(config: ConfigDict, data: dict, workdir: PathLike, examples: int) -> None:
    """Refuses to resume a run that was started with another config or on other captions.

    The number of steps may change if the learning-rate schedule keeps its length; `examples` is
    the number of training examples of an epoch.

    Raises UsageError that names the difference, or DataError if the run's record is unreadable.
    """
    with checkpointer.Checkpointer(Path(workdir), config.train.max_to_keep) as checkpoints:
        latest = checkpoints.latest()
    if latest is None:
        return
    path = Path(workdir) / "config.json"
    if not path.exists() and model_card.read_card(path.parent).get("ported"):
        return  # the first run in a workdir that `port` wrote
    try:
        config_before = from_json(storage.read_text(path))
        before = json.loads(storage.read_text(path.with_name("data.json")))
    except (DataError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot resume from its checkpoints: {error}") from None
    if before.get("processes", 1) != data["processes"]:
        raise UsageError(
            f"{workdir} holds a run of {before.get('processes', 1)} processes, this one has "
            f"{data['processes']}: use the same number, or start a new run from its weights with "
            f"--config.model.weights={workdir} and another workdir"
        )
    if any(before.get(key) != data[key] for key in ("clips", "sha256")):
        raise UsageError(
            f"{workdir} holds a run on other training or validation captions ({before['clips']} "
            f"clips, now {data['clips']}); use another workdir"
        )
    changed = [
        row
        for row in difference(config_before, config)
        if not row[0].startswith(MAY_CHANGE) and row[0] not in SCHEDULE
    ]
    if changed:
        rows = ", ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changed)
        raise UsageError(f"{workdir} holds a run of another config: {rows}; use another workdir")
    _check_schedule(config_before, config, workdir, examples)
    if latest > config.train.steps:
        raise UsageError(
            f"{workdir} is at step {latest} already, and train.steps is {config.train.steps}; give "
            "more steps, or use another workdir"
        )


def _check_schedule(
    before: ConfigDict, config: ConfigDict, workdir: PathLike, examples: int
) -> None:
    """Raises UsageError if the steps done would have had other learning rates."""
    length, new_length = schedule_steps(before, examples), schedule_steps(config, examples)
    if length == new_length:
        return
    epoch = steps_per_epoch(config, examples)
    same = ""
    if length % epoch == 0 and not config.optimizer.schedule_epochs:
        then = AFTER_THE_END[config.optimizer.schedule]
        same = (
            f"To keep the schedule of {length} steps{f' ({then})' if then else ''}, add "
            f"--config.optimizer.schedule_epochs={length // epoch}. "
        )
    raise UsageError(
        f"{workdir} holds a run with a learning-rate schedule of {length} steps, now of "
        f"{new_length}: other steps (train.steps, train.epochs) change it, unless "
        f"optimizer.schedule_epochs sets its length. {same}To train with another schedule, start a "
        f"new run from its weights with --config.model.weights={workdir} and another workdir"
    )


def recorded_num_frames(workdir: PathLike) -> int:
    """The padded number of frames of a clip in the run's batches; 0 if it is not recorded."""
    try:
        record = json.loads(storage.read_text(Path(workdir) / "data.json"))
        return record.get("num_frames") or record.get("width", 0)  # the key's name in older runs
    except (OSError, ValueError):
        return 0


def write_run_record(config: ConfigDict, spec: ModelSpec, data: dict, workdir: Path) -> None:
    """Writes model.json, config.json, data.json and environment.json."""
    json_files.make_workdir(workdir)
    card = model_card.build_card(spec, weights=config.model.weights)
    json_files.write_json(workdir / model_card.CARD_FILE, card)
    json_files.write_json(workdir / "config.json", config.to_dict())
    json_files.write_json(workdir / "data.json", data)
    json_files.write_json(workdir / "environment.json", environment.environment(jax.devices()))

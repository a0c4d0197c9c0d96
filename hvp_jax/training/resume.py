"""What a run writes of itself into its workdir, and whether it may go on there."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data.errors import DataError, UsageError
from data.records import Clip
from hvp_jax.checkpoints import checkpointer, model_card
from hvp_jax.config.saved import difference, from_json
from hvp_jax.models.clip_config import ModelSpec
from hvp_jax.monitoring import environment, json_files

# Keys that may differ when a run goes on: they change what is kept, shown or scored,
# or where things lie, but no update.
MAY_CHANGE = (
    "eval.",
    "data.root",
    "data.videos",
    "data.shards",
    "data.annotations",
    "data.exclude",
)
MAY_CHANGE += ("parallel", "fsdp", "bench", "profile", "data.beam_options")
MAY_CHANGE += ("train.checkpoint_every", "train.eval_every", "train.log_every", "train.max_to_keep")
MAY_CHANGE += ("train.select_by", "train.max_skipped_updates", "train.stall_timeout")


def fingerprint(clips: Sequence[Clip]) -> dict:
    """What a run learns from and is chosen by, but for the pixels and where they lie."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(
            repr((clip.clip_id, clip.split, clip.captions, clip.start, clip.end)).encode()
        )
    # Each process has a place of its own in the data.
    about = {"clips": len(clips), "sha256": digest.hexdigest()}
    return about | {"processes": jax.process_count()}


def check_resumable(config: ConfigDict, data: dict, workdir: Path) -> None:
    """Refuses to go on with a run that another config, or other captions, began."""
    with checkpointer.Checkpointer(workdir, config.train.max_to_keep) as checkpoints:
        if checkpoints.latest() is None:
            return
    path = workdir / "config.json"
    if not path.exists() and model_card.read_card(workdir).get("ported"):
        return  # the first to go on from what `port` wrote
    try:
        config_before = from_json(path.read_text())
        before = json.loads((workdir / "data.json").read_text())
    except (DataError, OSError, ValueError) as error:
        raise DataError(f"{path}: its checkpoints cannot be gone on with: {error}") from None
    if before.get("processes", 1) != data["processes"]:
        raise UsageError(
            f"{workdir} holds a run of {before.get('processes', 1)} processes, now "
            f"{data['processes']}: start as many, or begin a run from its weights with "
            f"--config.model.weights={workdir} and another workdir"
        )
    if any(before.get(key) != data[key] for key in ("clips", "sha256")):
        raise UsageError(
            f"{workdir} holds a run on other training or validation captions ({before['clips']} "
            f"clips, now {data['clips']}); use another workdir"
        )
    changed = [
        row for row in difference(config_before, config) if not row[0].startswith(MAY_CHANGE)
    ]
    if changed:
        rows = ", ".join(f"{key} was {a!r}, is {b!r}" for key, a, b in changed)
        raise UsageError(f"{workdir} holds a run of another config: {rows}; use another workdir")


def recorded_num_frames(workdir: Path) -> int:
    """How many frames the clips of the run's batches had; 0 if there was none."""
    try:
        found = json.loads((workdir / "data.json").read_text())
        return found.get("num_frames") or found.get("width", 0)  # its name in older runs
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

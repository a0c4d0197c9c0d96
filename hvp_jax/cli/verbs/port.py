"""The verb `port`: converts a PyTorch checkpoint to a workdir, and with `--export` back.

The destination is written completely or not at all; in a bucket, which renames nothing, it is
complete when it has its model.json. It is a workdir with one checkpoint:
`--config.model.weights=DIR` starts a run from it, and `train --workdir=DIR` resumes where the
original's trainer stopped, with its optimizer moments.
"""

import dataclasses
import os
import shutil
import tempfile
from typing import Any

from data.errors import UsageError
from data.paths import check_path
from data.storage import files as storage
from data.storage.path import Path, absolute, is_bucket
from hvp_jax.checkpoints import save_weights
from hvp_jax.checkpoints.model_card import CARD_FILE, model_card
from hvp_jax.monitoring import json_files
from hvp_jax.training import train_state
from hvp_jax.weights import convert, initial
from hvp_jax.weights.export import export_weights
from hvp_jax.weights.optimizer_state import AdamMoments


@dataclasses.dataclass(frozen=True)
class PortResult:
    card: dict[str, Any] = dataclasses.field(metadata={"json": "**"})  # the content of model.json
    destination: Path

    @property
    def text(self) -> str:
        return model_card(self.card).strip()


def run(
    source: Path, destination: Path, format: str = "auto", export: str | None = None
) -> PortResult:
    """Converts `source`, a PyTorch file or directory or a workdir, to `destination`."""
    destination = absolute(destination)
    if not export:  # Orbax writes to it
        check_path("--destination", str(destination), "arrays")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(
            f"--destination={destination} exists and is not empty; name a new directory"
        )
    is_workdir = initial.has_checkpoints(source)
    if is_workdir and not export:
        raise UsageError(f"--source={source} is a workdir, not PyTorch; give --export=FORMAT")
    if is_workdir:
        params, card, moments = convert.convert_workdir(source)
    else:
        params, card, moments = convert.convert_torch(source, format, bool(export))
    if is_bucket(destination):
        card = _write(destination, params, card, moments, export)
    else:
        folder = _folder_beside(destination)
        try:
            card = _write(folder, params, card, moments, export)
            os.chmod(folder, 0o755)
            _publish(folder, destination)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return PortResult(card, destination)


def _folder_beside(destination: Path) -> Path:
    try:
        storage.make_folder(destination.parent)
        return Path(tempfile.mkdtemp(prefix=f"{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise UsageError(
            f"--destination={destination} cannot be created: {error.strerror}"
        ) from None


def _write(
    folder: Path,
    params: dict[str, Any],
    card: dict[str, Any],
    moments: AdamMoments | None,
    export: str | None,
) -> dict[str, Any]:
    """Writes the files of a destination, the card as the last one, and returns the card."""
    if export:
        card |= export_weights(folder, params, card, export)
    else:
        rest = None
        if moments:
            state = train_state.imported_train_state(
                params, moments.first, moments.second, moments.steps
            )
            rest = state.items()["rest"]
            del state, moments
        save_weights.save_weights(folder, card["step"], params, rest)
    json_files.write_text_atomically(folder / "model_card.md", model_card(card))
    json_files.write_json(folder / CARD_FILE, card)
    return card


def _publish(folder: Path, destination: Path) -> None:
    """Gives the finished folder its name. Raises UsageError if another process was faster."""
    try:
        os.rename(folder, destination)  # replaces an empty directory
    except OSError as error:
        raise UsageError(
            f"--destination={destination} cannot be created: {error.strerror}; another process "
            "may have written it meanwhile: name a new directory"
        ) from None

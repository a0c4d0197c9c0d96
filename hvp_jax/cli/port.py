"""The verb `port`: a checkpoint of PyTorch's world -> one here, and `--export` back.

What is written is whole or not there at all. A destination is a workdir with one
checkpoint: `--config.model.weights=DIR` begins a run from it, and `train --workdir=DIR`
goes on where the original's trainer was, with its moments.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from data.errors import UsageError
from hvp_jax.checkpoints import save_weights
from hvp_jax.checkpoints.model_card import CARD_FILE, model_card
from hvp_jax.training import train_state
from hvp_jax.weights import convert, initial
from hvp_jax.weights.export import export_weights


def run(source: Path, destination: Path, format: str = "auto", export: str | None = None) -> dict:
    """Ports `source`, a file or directory of PyTorch's or a workdir here, to `destination`."""
    destination = Path(destination).absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(
            f"--destination={destination} holds something already; name a new directory"
        )
    of_ours = initial.has_checkpoints(source)
    if of_ours and not export:
        raise UsageError(f"--source={source} is a workdir of ours already; say --export=FORMAT")
    if of_ours:
        params, card, moments = convert.convert_workdir(source)
    else:
        params, card, moments = convert.convert_torch(source, format, bool(export))
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.mkdtemp(prefix=destination.name + ".", dir=destination.parent)
    except OSError as error:
        raise UsageError(f"--destination={destination} cannot be made: {error.strerror}") from None
    beside = Path(beside)
    try:
        if export:
            card |= export_weights(beside, params, card, export)
        else:
            rest = None
            if moments:
                state = train_state.imported_train_state(
                    params, moments.first, moments.second, moments.steps
                )
                rest = state.items()["rest"]
                del state, moments
            save_weights.save_weights(beside, card["step"], params, rest)
        (beside / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")
        (beside / "model_card.md").write_text(model_card(card))
        beside.chmod(0o755)
        os.rename(beside, destination)  # over an empty directory, too
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {**card, "destination": str(destination), "text": model_card(card).strip()}

"""Reads a checkpoint to port: its parameters, its model card and its optimizer state."""

import hashlib
import logging
from io import BufferedIOBase
from typing import cast

from flax.traverse_util import flatten_dict

from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.checkpoints.model_card import build_card
from hvp_jax.models.model_spec import ModelSpec
from hvp_jax.weights import formats, initial, optimizer_state, param_mapping

log = logging.getLogger(__name__)


def convert_workdir(workdir: Path) -> tuple[dict, dict, None]:
    """The parameters of a workdir's selected checkpoint, and a card for their export."""
    weights = initial.weights_of_workdir(workdir)
    log.info("reading the selected checkpoint of %s", workdir)
    params = weights.load()
    card = build_card(
        weights.spec,
        ported=False,
        format="workdir",
        source=str(workdir),
        step=0,
        sha256={},
        new=[],
        ignored={},
        notes=[],
        optimizer=None,
        parameters=_count(params),
    )
    return params, card, None


def convert_torch(
    path: Path, format: str, export: bool
) -> tuple[dict, dict, optimizer_state.AdamMoments | None]:
    """The parameters and the card of a PyTorch checkpoint, and unless it is exported, its moments.

    Raises UsageError or DataError.
    """
    source = formats.open_checkpoint(path, format)
    log.info("reading %d tensors of %s, format %s", len(source.tensors), path, source.format)
    sha256 = {file.name: _sha256(file) for file in source.files}
    moments = None if export else optimizer_state.read_adam_moments(source)
    params = source.load()
    notes = list(source.notes)
    if source.taps is None:
        notes.append(
            "the checkpoint does not record its taps; the default of a config is the first, "
            "middle and last layer"
        )
    head_modules = sorted({rule.path.partition("/")[0] for rule in param_mapping.HVPNET_HEAD})
    spec = ModelSpec(source.clip_config, source.taps, source.head, pretrained=True)
    card = build_card(
        spec,
        ported=True,
        format=source.format,
        source=str(path),
        sha256=sha256,
        step=moments.steps if moments else 0,
        tensors=len(source.tensors.shapes),
        parameters=_count(params),
        new=[] if source.head else head_modules,
        ignored=source.ignored,
        notes=notes,
        optimizer=moments.constants if moments else None,
    )
    return params, card, moments


def _count(params: dict) -> int:
    return sum(x.size for x in flatten_dict(params, sep="/").values())


def _sha256(path: Path) -> str:
    with storage.open_read(path) as file:
        return hashlib.file_digest(cast(BufferedIOBase, file), "sha256").hexdigest()

"""A checkpoint of PyTorch's or of ours -> parameters, card and optimizer state."""

import hashlib
import logging
from pathlib import Path

from hvp_jax.checkpoints.model_card import build_card
from hvp_jax.models.clip_config import ModelSpec
from hvp_jax.weights import formats, initial, optimizer_state, param_mapping, torch_params

log = logging.getLogger(__name__)


def convert_workdir(workdir: Path) -> tuple[dict, dict, None]:
    found = initial.weights_of_workdir(workdir)
    log.info("reading the chosen checkpoint of %s", workdir)
    params = found.load()
    about = {"ported": False, "format": "workdir", "source": str(workdir), "step": 0}
    about |= {"sha256": {}, "new": [], "ignored": {}, "notes": [], "optimizer": None}
    about |= {"parameters": _count(params)}
    return params, build_card(found.spec, **about), None


def convert_torch(
    path: Path, format: str, export: bool
) -> tuple[dict, dict, optimizer_state.AdamMoments | None]:
    source = formats.open_checkpoint(path, format)
    log.info("reading %d tensors of %s, format %s", len(source.tensors), path, source.format)
    sha256 = {file.name: _sha256(file) for file in source.files}
    found = None if export else optimizer_state.read_adam_moments(source)
    shapes = source.tensors.shapes
    params = torch_params.from_torch(source.tensors, source.scheme)
    notes = list(source.notes)
    if source.taps is None:
        notes.append("the checkpoint tells no taps; a config's are first, middle and last layer")
    about = build_card(
        ModelSpec(source.clip_config, source.taps, source.stages, pretrained=True),
        ported=True,
        format=source.format,
        source=str(path),
        sha256=sha256,
        step=found.steps if found else 0,
        tensors=len(shapes),
        parameters=_count(params),
        new=[]
        if source.stages
        else sorted({r.ours.partition("/")[0] for r in param_mapping.HVPNET_HEAD}),
        ignored=source.ignored,
        notes=notes,
        optimizer=found.constants if found else None,
    )
    return params, about, found


def _count(params: dict) -> int:
    return sum(x.size for x in torch_params.flatten(params).values())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

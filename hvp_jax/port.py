"""The verb `port`: a checkpoint of PyTorch's world -> one here, and `--export` back.

What is written is whole or not there at all. A destination is a workdir with one
checkpoint: `--config.model.weights=DIR` begins a run from it, and `train --workdir=DIR`
goes on where the original's trainer was, with its moments.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from hvp_jax import moments, names, ported, rules, sources, step, weights
from hvp_jax.config import Told
from hvp_jax.errors import BadUse
from hvp_jax.sizes import Sizes

log = logging.getLogger(__name__)


def run(source: Path, destination: Path, format: str = "auto", export: str | None = None) -> dict:
    """Ports `source`, a file or directory of PyTorch's or a workdir here, to `destination`."""
    destination = Path(destination).absolute()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise BadUse(f"--destination={destination} holds something already; name a new directory")
    of_ours = weights.has_checkpoints(source)
    if of_ours and not export:
        raise BadUse(f"--source={source} is a workdir of ours already; say --export=FORMAT")
    params, card, rest = _ours(source) if of_ours else _theirs(source, format, bool(export))
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.mkdtemp(prefix=destination.name + ".", dir=destination.parent)
    except OSError as error:
        raise BadUse(f"--destination={destination} cannot be made: {error.strerror}") from None
    beside = Path(beside)
    try:
        if export:
            card |= _export(beside, params, card, export)
        else:
            ported.save(beside, card["step"], params, rest)
        (beside / weights.CARD).write_text(json.dumps(card, indent=2) + "\n")
        (beside / "model_card.md").write_text(model_card(card))
        beside.chmod(0o755)
        os.rename(beside, destination)  # over an empty directory, too
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return {**card, "destination": str(destination), "text": model_card(card).strip()}


def _ours(workdir: Path) -> tuple[dict, dict, None]:
    found = weights.of_workdir(workdir)
    log.info("reading the chosen checkpoint of %s", workdir)
    params = found.load()
    about = {"ported": False, "format": "workdir", "source": str(workdir), "step": 0}
    about |= {"sha256": {}, "new": [], "ignored": {}, "notes": [], "optimizer": None}
    about |= {"parameters": _count(params)}
    return params, weights.card(found.told, **about), None


def _theirs(path: Path, format: str, export: bool) -> tuple[dict, dict, step.State | None]:
    source = sources.open_source(path, format)
    log.info("reading %d tensors of %s, format %s", len(source.tensors), path, source.format)
    sha256 = {file.name: _sha256(file) for file in source.files}
    found = None if export else moments.of(source)
    shapes = source.tensors.shapes
    params = names.from_torch(source.tensors, source.scheme)
    rest = moments.state(params, found) if found else None
    notes = list(source.notes)
    if source.taps is None:
        notes.append("the checkpoint tells no taps; a config's are first, middle and last layer")
    card = weights.card(
        Told(source.sizes, source.taps, source.stages, pretrained=True),
        ported=True,
        format=source.format,
        source=str(path),
        sha256=sha256,
        step=found.steps if found else 0,
        tensors=len(shapes),
        parameters=_count(params),
        new=[] if source.stages else sorted({r.ours.partition("/")[0] for r in rules.HEAD}),
        ignored=source.ignored,
        notes=notes,
        optimizer=found.constants if found else None,
    )
    return params, card, rest


def _count(params: dict) -> int:
    return sum(x.size for x in names.flatten(params).values())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _export(folder: Path, params: dict, card: dict, export: str) -> dict:
    """Writes model.safetensors with PyTorch's names, and config.json for Hugging Face."""
    sizes, left_out = Sizes(**card["sizes"]), []
    if export == "huggingface":
        scheme = rules.HUGGING_FACE
        left_out = sorted(set(params) - {"clip"})
        text = json.dumps(hugging_face_config(sizes), indent=2) + "\n"
        (folder / "config.json").write_text(text)
    else:
        scheme = rules.Scheme(head=bool(card["stages"]))
    state = names.to_torch(params, scheme)
    params.clear()  # what is not shared with `state` is let go
    for name in list(state):
        state[name] = np.ascontiguousarray(state[name]).reshape(state[name].shape)
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(state, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library makes it readable to its owner alone
    return {"export": export, "left_out": left_out, "tensors": len(state)}


def hugging_face_config(sizes: Sizes) -> dict:
    """The config.json of a CLIPModel of these sizes."""
    common = {
        "hidden_act": sizes.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": sizes.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": sizes.embed_dim,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": common
        | {
            "model_type": "clip_text_model",
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_mlp or 4 * sizes.text_width,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_width // sizes.text_head,
            "max_position_embeddings": sizes.context_length,
            "vocab_size": sizes.vocabulary,
            # The two greatest ids begin and end a text.
            "bos_token_id": sizes.vocabulary - 2,
            "eos_token_id": sizes.vocabulary - 1,
        },
        "vision_config": common
        | {
            "model_type": "clip_vision_model",
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_mlp or 4 * sizes.vision_width,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_width // sizes.vision_head,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
        },
    }


def model_card(card: dict) -> str:
    """A card -> what a person reads of it, as Markdown."""
    sizes = card["sizes"]
    of = "CLIP and HVP-Net's head" if card["stages"] else "CLIP alone"
    if card.get("left_out"):
        of = "CLIP; left out, for the format has no place for it: " + ", ".join(card["left_out"])
    lines = ["# Model card", "", f"- weights: {of}, {card['parameters']:,} parameters"]
    lines.append(f"- from: `{card['source']}`, format {card['format']}")
    lines += [f"- sha256 of `{name}`: {digest}" for name, digest in card["sha256"].items()]
    lines.append("- sizes: " + ", ".join(f"{k} {v}" for k, v in sizes.items() if v is not None))
    lines.append(f"- taps: {', '.join(map(str, card['taps'])) if card['taps'] else 'not told'}")
    if card["optimizer"]:
        lines.append(f"- moments of the optimizer after {card['step']} updates are there")
    if card["new"]:
        lines.append(f"- new, random where a run begins: {', '.join(card['new'])}")
    lines += [f"- ignored: `{name}`: {reason}" for name, reason in card["ignored"].items()]
    lines += [f"- {note}" for note in card["notes"]]
    if card.get("export"):
        lines.append(f"- written as model.safetensors with the names of {card['export']}")
    return "\n".join(lines) + "\n"

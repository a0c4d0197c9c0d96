"""model.json and model_card.md: a description of the weights in a workdir."""

import dataclasses
import json
from typing import Any

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import shapes_of
from hvp_jax.models.model_spec import HeadConfig, ModelSpec

CARD_FILE = "model.json"
RENAMED_SIZES = {  # a model.json of an earlier version: old name -> new name
    "vocabulary": "vocab_size",
    "vision_head": "vision_head_dim",
    "text_head": "text_head_dim",
    "vision_mlp": "vision_mlp_dim",
    "text_mlp": "text_mlp_dim",
}


def model_card(card: dict[str, Any]) -> str:
    """The content of model_card.md: the card as Markdown."""
    sizes = card["clip_config"]
    weights = "CLIP and HVP-Net's head" if card["head"] else "CLIP alone"
    if card.get("left_out"):
        left_out = ", ".join(card["left_out"])
        weights = f"CLIP; left out, because the format cannot hold it: {left_out}"
    lines = ["# Model card", "", f"- weights: {weights}, {card['parameters']:,} parameters"]
    lines.append(f"- source: `{card['source']}`, format {card['format']}")
    lines += [f"- sha256 of `{name}`: {digest}" for name, digest in card["sha256"].items()]
    lines.append("- sizes: " + ", ".join(f"{k} {v}" for k, v in sizes.items() if v is not None))
    lines.append(f"- taps: {', '.join(map(str, card['taps'])) if card['taps'] else 'not recorded'}")
    if card["optimizer"]:
        lines.append(f"- optimizer moments: included, after {card['step']} updates")
    if card["new"]:
        lines.append(
            f"- not in the source, initialised randomly when a run begins: {', '.join(card['new'])}"
        )
    lines += [f"- ignored: `{name}`: {reason}" for name, reason in card["ignored"].items()]
    lines += [f"- {note}" for note in card["notes"]]
    if card.get("export"):
        lines.append(f"- written as model.safetensors with the parameter names of {card['export']}")
    return "\n".join(lines) + "\n"


def card_spec(card: dict[str, Any]) -> ModelSpec:
    return ModelSpec(**{name: card[name] for name in ModelSpec._fields})


def card_shapes(card: dict[str, Any]) -> dict[str, Any]:
    """The shapes of the parameters that a card describes: of CLIP alone if it has no head."""
    shapes = shapes_of(card["clip_config"], card["head"] or HeadConfig(), card["taps"])
    return shapes if card["head"] else {"clip": shapes["clip"]}


def read_card(workdir: Path) -> dict[str, Any]:
    """The model.json of a workdir, with the fields of a `ModelSpec`.

    Raises UsageError if it is missing, DataError if it does not describe a model.
    """
    path = Path(workdir) / CARD_FILE
    try:
        card = json.loads(storage.read_text(path))
        sizes = card.pop("clip_config", None) or card.pop("sizes")
        sizes = {RENAMED_SIZES.get(name, name): value for name, value in sizes.items()}
        return card | {
            "clip_config": ClipConfig(**sizes),
            "taps": tuple(card["taps"]) if card["taps"] else None,
            "head": _head(card),
            "pretrained": bool(card["pretrained"]),
        }
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); the workdir's checkpoints need it"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: does not describe a model ({error!r})") from None


def _head(card: dict[str, Any]) -> HeadConfig | None:
    """The head in a model.json; an earlier version recorded only its stages, 0 for none."""
    if "head" not in card:
        return HeadConfig(stages=int(card["stages"])) if card["stages"] else None
    head = card["head"]
    return head and HeadConfig(**head | {"terms": tuple(head["terms"])})


def build_card(spec: ModelSpec, **fields: object) -> dict[str, Any]:
    """The content of model.json."""
    head = spec.head
    return {
        **spec._asdict(),
        "clip_config": dataclasses.asdict(spec.clip_config),
        "head": head and dataclasses.asdict(head),
        "stages": head.stages if head else 0,  # what an earlier version reads
        **fields,
    }

"""model.json and model_card.md: what the weights of a workdir are."""

import dataclasses
import json
from pathlib import Path

from data.errors import BadData, BadUse
from hvp_jax.models.clip_config import Sizes, Told
from hvp_jax.models.hvpnet import shapes_of

CARD = "model.json"  # what `port` writes beside what it has written


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


def card_shapes(card: dict) -> dict:
    """The tree of shapes of what a card describes: of CLIP alone, where it has no stages."""
    shapes = shapes_of(Sizes(**card["sizes"]), card["stages"] or 1)
    return shapes if card["stages"] else {"clip": shapes["clip"]}


def read_card(workdir: Path) -> dict:
    """The model.json of a workdir: `sizes`, `taps` (None: not told), `stages` (0: CLIP alone)."""
    path = Path(workdir) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        Sizes(**card["sizes"])
        taps = tuple(card["taps"]) if card["taps"] else None
        return card | {
            "taps": taps,
            "stages": int(card["stages"]),
            "pretrained": bool(card["pretrained"]),
        }
    except OSError as error:
        raise BadUse(
            f"{path}: cannot be read ({error.strerror}); it tells the sizes of its checkpoints"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(f"{path}: does not tell the sizes of a model ({error!r})") from None


def card(told: Told, **more: object) -> dict:
    """What model.json holds."""
    return {**told._asdict(), "sizes": dataclasses.asdict(told.sizes), **more}

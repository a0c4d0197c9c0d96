"""Reads the checkpoints that people have: files of PyTorch and safetensors, in four formats.

    openai       the TorchScript archives of OpenAI's CLIP, or a state dict with their names
    open_clip    the same names, those of the text tower with `text.` before them or not
    huggingface  a directory of CLIPModel: its weights and config.json
    hvpnet       a checkpoint of the original HVP-Net, with its optimizer

Nothing in a checkpoint is executed: pickles are read with `weights_only=True`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import DataError, UsageError
from hvp_jax.checkpoints.model_card import CARD_FILE
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.weights import infer_config, param_mapping, tensor_files
from hvp_jax.weights.param_mapping import NamingScheme
from hvp_jax.weights.tensor_files import LazyTensors

FORMATS = ("openai", "open_clip", "huggingface", "hvpnet")

IGNORED = {  # the end of a tensor's name: why nothing is lost without it
    "input_resolution": "the shapes of the tensors tell it",
    "context_length": "the shapes of the tensors tell it",
    "vocab_size": "the shapes of the tensors tell it",
    "position_ids": "the numbers 0, 1, 2 and so on",
    "attn_mask": "the causal mask, which is computed",
}
WRAPPERS = ("module.", "_orig_mod.", "model.")  # of parallel and compiled modules
# Files of weights, the preferred one first, and the file that describes them.
HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OPEN_CLIP_CONFIG = "open_clip_config.json"


class TorchCheckpoint(NamedTuple):
    """An opened checkpoint: what it is, and its tensors, not yet read."""

    path: Path
    files: tuple[Path, ...]  # that hold the tensors
    format: str
    scheme: NamingScheme
    tensors: LazyTensors
    clip_config: ClipConfig
    stages: int  # of distillation; 0: of CLIP alone
    taps: tuple[int, ...] | None  # None: not told
    ignored: dict[str, str]  # tensor: reason
    notes: tuple[str, ...]
    rest: dict[str, Any]  # beside the tensors: optimizer, steps


def open_checkpoint(path: Path, format: str = "auto") -> TorchCheckpoint:
    """Opens a file or a directory. Raises UsageError or DataError that names it, or the tensor."""
    path = Path(path)
    if format not in ("auto", *FORMATS):
        raise UsageError(f"--format={format}: it is auto or one of {', '.join(FORMATS)}")
    files = _files(path)
    found, rest = tensor_files.open_files(files)
    found = _unwrapped(found)
    kind = _detect(path, found, files, rest)
    alike = {kind} | ({"openai", "open_clip"} if kind in ("openai", "open_clip") else set())
    if format != "auto" and format not in alike:
        raise UsageError(f"{path}: its tensors are named as in {kind}, not as in {format}")
    kind = kind if format == "auto" else format
    ignored = {
        name: reason
        for name in found
        for end, reason in IGNORED.items()
        if name.rpartition(".")[2] == end
    }
    found = found.without(ignored)
    scheme = _scheme(kind, found)
    try:
        sizes, stages, notes = _sizes(path, files, kind, scheme, found)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    rest = rest if kind == "hvpnet" else {}
    return TorchCheckpoint(
        path, files, kind, scheme, found, sizes, stages, _taps(files), ignored, notes, rest
    )


def is_checkpoint(path: Path) -> bool:
    """Whether there is something at `path` that could be a checkpoint of PyTorch's world."""
    if not path.is_dir():
        return path.exists()
    indices = [f"{name}.index.json" for name in HUGGING_FACE]
    return any((path / name).is_file() for name in (*HUGGING_FACE, *OPEN_CLIP, *indices))


def _files(path: Path) -> tuple[Path, ...]:
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory")
    if not path.is_dir():
        return (path,)
    for name in HUGGING_FACE:
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return (path / name,)
        if index.is_file():
            parts = set(_json(index).get("weight_map", {}).values())
            if not parts or any(Path(part).name != part for part in parts):
                raise DataError(f"{index}: has no `weight_map` to files beside it")
            return tuple(path / part for part in sorted(parts))
    for name in OPEN_CLIP:
        if (path / name).is_file():
            return (path / name,)
    raise UsageError(f"{path}: holds none of {', '.join((*HUGGING_FACE, *OPEN_CLIP))}")


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object")
    return value


def _unwrapped(found: LazyTensors) -> LazyTensors:
    """Without a prefix that all names share because a module was wrapped."""
    for _ in WRAPPERS:
        for prefix in WRAPPERS:
            if found and all(name.startswith(prefix) for name in found):
                found = found.renamed({name: name.removeprefix(prefix) for name in found})
    return found


def _detect(path: Path, found: Mapping, files: tuple[Path, ...], rest: Mapping) -> str:
    heads = {name.partition(".")[0] for name in found}
    if heads & {"clip", "PatchListProcessing"}:
        return "hvpnet"
    if heads & {"vision_model", "text_model"}:
        return "huggingface"
    if "visual" in heads:
        beside = (files[0].parent / OPEN_CLIP_CONFIG).is_file()
        by_trainer = {"epoch", "name"} <= set(rest)  # which is open_clip's, and OpenAI's has none
        return "open_clip" if "text" in heads or beside or by_trainer else "openai"
    some = ", ".join(sorted(found)[:3]) or "none"
    raise DataError(f"{path}: holds no CLIP and no HVP-Net; its tensors are {some} ...")


def _scheme(kind: str, found: Mapping) -> NamingScheme:
    if kind == "huggingface":
        return param_mapping.HUGGING_FACE
    if kind == "hvpnet":
        return NamingScheme(head=any(not name.startswith("clip.") for name in found))
    nested = any(name.startswith("text.") for name in found)

    def spell(name: str) -> str:
        name = name.removeprefix("clip.")
        of_text = not name.startswith("visual.") and name != "logit_scale"
        return f"text.{name}" if nested and of_text else name

    return NamingScheme(head=False, spell=spell)


def _sizes(
    path: Path, files: tuple[Path, ...], kind: str, scheme: NamingScheme, found: LazyTensors
) -> tuple[ClipConfig, int, tuple[str, ...]]:
    told, notes, check = {}, [], {}
    beside = files[0].parent
    if kind == "huggingface":
        config = _json(beside / "config.json") if (beside / "config.json").is_file() else None
        if config is None:
            raise UsageError(
                f"{beside}: has no config.json, which tells the activation and the heads"
            )
        told, check = infer_config.config_from_huggingface(config, beside / "config.json")
    elif (beside / OPEN_CLIP_CONFIG).is_file():
        told = infer_config.config_from_open_clip(
            _json(beside / OPEN_CLIP_CONFIG), beside / OPEN_CLIP_CONFIG
        )
    elif (beside / CARD_FILE).is_file():  # an export of ours
        card = _json(beside / CARD_FILE)
        sizes = card.get("clip_config") or card.get("sizes") or {}
        told = {"activation": sizes.get("activation")}
    elif kind == "open_clip":
        notes.append(
            f"no {OPEN_CLIP_CONFIG} beside it: QuickGELU is assumed, as in OpenAI's weights; "
            "put that file there if the model was trained with GELU"
        )
    sizes, stages = infer_config.infer_config(found.shapes, scheme, told, check)
    return sizes, stages, tuple(notes)


def _taps(files: tuple[Path, ...]) -> tuple[int, ...] | None:
    """Those that `port --export` noted beside the tensors; no other checkpoint tells any."""
    path = files[0].parent / CARD_FILE
    taps = _json(path).get("taps") if path.is_file() else None
    return tuple(taps) if taps else None

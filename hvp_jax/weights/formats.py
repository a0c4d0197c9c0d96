"""Opens PyTorch and safetensors checkpoints in four formats.

    openai       a TorchScript archive of OpenAI's CLIP, or a state dict with the same names
    open_clip    the same names; those of the text tower may have the prefix `text.`
    huggingface  the directory of a CLIPModel: its weights and config.json
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
from hvp_jax.weights.param_mapping import FORMATS, NamingScheme
from hvp_jax.weights.tensor_files import LazyTensors

FROM_SHAPES = "follows from the shapes of the tensors"
IGNORED = {  # last part of a tensor's name: why it is not needed
    "input_resolution": FROM_SHAPES,
    "context_length": FROM_SHAPES,
    "vocab_size": FROM_SHAPES,
    "position_ids": "the numbers 0, 1, 2 and so on",
    "attn_mask": "the causal mask, which is computed",
}
WRAPPERS = ("module.", "_orig_mod.", "model.")  # prefixes of parallel and compiled modules
# Files of weights, the preferred one first, and the file that describes open_clip's.
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
    stages: int  # of distillation; 0: CLIP alone
    taps: tuple[int, ...] | None  # None: not recorded
    ignored: dict[str, str]  # tensor: reason
    notes: tuple[str, ...]
    extras: dict[str, Any]  # entries beside the tensors: optimizer, steps


def open_checkpoint(path: Path, format: str = "auto") -> TorchCheckpoint:
    """Opens a file or a directory. Raises UsageError or DataError that names it, or the tensor."""
    path = Path(path)
    if format not in ("auto", *FORMATS):
        raise UsageError(f"--format={format}: it is auto or one of {', '.join(FORMATS)}")
    files = _files(path)
    tensors, extras = tensor_files.open_files(files)
    tensors = _unwrapped(tensors)
    detected = _detect(path, tensors, files, extras)
    same_names = ("openai", "open_clip")
    compatible = {detected, *(same_names if detected in same_names else ())}
    if format != "auto" and format not in compatible:
        raise UsageError(f"{path}: its tensors are named as in {detected}, not as in {format}")
    format = detected if format == "auto" else format
    ignored = {
        name: IGNORED[last] for name in tensors if (last := name.rpartition(".")[2]) in IGNORED
    }
    tensors = tensors.without(ignored)
    scheme = _scheme(format, tensors)
    try:
        clip_config, stages, notes = _infer_config(files, format, scheme, tensors)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return TorchCheckpoint(
        path=path,
        files=files,
        format=format,
        scheme=scheme,
        tensors=tensors,
        clip_config=clip_config,
        stages=stages,
        taps=_taps(files),
        ignored=ignored,
        notes=notes,
        extras=extras if format == "hvpnet" else {},
    )


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a file, or a directory with a file of weights that can be opened."""
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


def _unwrapped(tensors: LazyTensors) -> LazyTensors:
    """Strips the prefixes that all names share because a module was wrapped."""
    for _ in WRAPPERS:
        for prefix in WRAPPERS:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = tensors.renamed({name: name.removeprefix(prefix) for name in tensors})
    return tensors


def _detect(path: Path, tensors: Mapping, files: tuple[Path, ...], extras: Mapping) -> str:
    modules = {name.split(".")[0] for name in tensors}
    if modules & {"clip", "PatchListProcessing"}:
        return "hvpnet"
    if modules & {"vision_model", "text_model"}:
        return "huggingface"
    if "visual" in modules:
        has_config = (files[0].parent / OPEN_CLIP_CONFIG).is_file()
        by_trainer = {"epoch", "name"} <= set(extras)  # open_clip's trainer; OpenAI published none
        return "open_clip" if "text" in modules or has_config or by_trainer else "openai"
    examples = ", ".join(sorted(tensors)[:3]) or "none"
    raise DataError(f"{path}: holds no CLIP and no HVP-Net; its tensors are {examples} ...")


def _scheme(format: str, tensors: Mapping) -> NamingScheme:
    if format == "huggingface":
        return param_mapping.HUGGING_FACE
    if format == "hvpnet":
        return NamingScheme(head=any(not name.startswith("clip.") for name in tensors))
    nested = any(name.startswith("text.") for name in tensors)

    def spell(name: str) -> str:
        name = name.removeprefix("clip.")
        in_text_tower = not name.startswith("visual.") and name != "logit_scale"
        return f"text.{name}" if nested and in_text_tower else name

    return NamingScheme(head=False, spell=spell)


def _infer_config(
    files: tuple[Path, ...], format: str, scheme: NamingScheme, tensors: LazyTensors
) -> tuple[ClipConfig, int, tuple[str, ...]]:
    given: dict[str, Any] = {}
    check: dict[str, tuple[str, Any]] = {}
    notes = []
    folder = files[0].parent
    if format == "huggingface":
        file = folder / "config.json"
        if not file.is_file():
            raise UsageError(f"{folder}: has no config.json, which gives the activation and heads")
        given, check = infer_config.config_from_huggingface(_json(file), file)
    elif (file := folder / OPEN_CLIP_CONFIG).is_file():
        given = infer_config.config_from_open_clip(_json(file), file)
    elif (file := folder / CARD_FILE).is_file():  # written by `port --export`
        card = _json(file)
        clip_config = card.get("clip_config") or card.get("sizes") or {}
        given = {"activation": clip_config.get("activation")}
    elif format == "open_clip":
        notes.append(
            f"no {OPEN_CLIP_CONFIG} beside it: QuickGELU is assumed, as in OpenAI's weights; "
            "put that file there if the model was trained with GELU"
        )
    clip_config, stages = infer_config.infer_config(tensors.shapes, scheme, given, check)
    return clip_config, stages, tuple(notes)


def _taps(files: tuple[Path, ...]) -> tuple[int, ...] | None:
    """The taps that `port --export` wrote beside the tensors; other checkpoints record none."""
    path = files[0].parent / CARD_FILE
    taps = _json(path).get("taps") if path.is_file() else None
    return tuple(taps) if taps else None

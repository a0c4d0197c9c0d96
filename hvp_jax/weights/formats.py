"""Opens PyTorch and safetensors checkpoints in four formats.

    openai       a TorchScript archive of OpenAI's CLIP, or a state dict with the same names
    open_clip    the same names; those of the text tower may have the prefix `text.`
    huggingface  the directory of a CLIPModel: its weights and config.json
    hvpnet       a checkpoint of the original HVP-Net, with its optimizer

Other models are refused by name, and the activation is settled: see `identity/`.
Nothing in a checkpoint is executed: pickles are read with `weights_only=True`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from data.errors import DataError, UsageError
from data.storage.path import Path
from hvp_jax.checkpoints.model_card import CARD_FILE
from hvp_jax.models.clip_config import ACTIVATIONS, ClipConfig
from hvp_jax.models.model_spec import HeadConfig
from hvp_jax.weights import infer_config, param_mapping, tensor_files, torch_params
from hvp_jax.weights.identity import families, open_clip, pixels, repair, tokenizers
from hvp_jax.weights.identity.activation import Evidence, from_names, settle
from hvp_jax.weights.identity.beside import (
    HUGGING_FACE_CONFIG,
    OPEN_CLIP_CONFIG,
    read_if_there,
    read_json,
    section,
)
from hvp_jax.weights.param_mapping import FORMATS, NamingScheme
from hvp_jax.weights.tensor_files import LazyTensors

WRAPPERS = ("module.", "_orig_mod.", "model.")  # prefixes of parallel and compiled modules
# Files of weights, the preferred one first.
HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Numbers that only OpenAI's archives hold among their tensors.
OPENAI_NUMBERS = {"input_resolution", "context_length", "vocab_size"}


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
    normalization: pixels.Normalization | None = None  # None: CLIP's own

    @property
    def head(self) -> HeadConfig | None:
        """HVP-Net's head; None: CLIP alone."""
        return HeadConfig(stages=self.stages) if self.stages else None

    def load(self) -> dict[str, Any]:
        """The parameters. Once only: each tensor can be read only once."""
        params = torch_params.from_torch(self.tensors, self.scheme)
        return pixels.fold(params, self.normalization) if self.normalization else params


def open_checkpoint(
    path: Path, format: str = "auto", activation: str | None = None
) -> TorchCheckpoint:
    """Opens a file or a directory. `activation`: the config's `model.activation`.

    Raises UsageError or DataError that names the path, or the tensor.
    """
    path = Path(path)
    if format not in ("auto", *FORMATS):
        raise UsageError(f"--format={format}: it is auto or one of {', '.join(FORMATS)}")
    files = _files(path)
    folder = files[0].parent
    # The files beside weights of another name than the hub's may be of another model.
    described = path.is_dir() or path.name in (*HUGGING_FACE, *OPEN_CLIP)
    if described:
        families.refuse_other_config(folder)
    tensors, extras = tensor_files.open_files(files)
    tensors = _unwrapped(tensors)
    families.refuse_other_tensors(path, tensors)
    detected = _detect(path, tensors, files, extras)
    same_names = ("openai", "open_clip")
    compatible = {detected, *(same_names if detected in same_names else ())}
    if format != "auto" and format not in compatible:
        raise UsageError(f"{path}: its tensors are named as in {detected}, not as in {format}")
    found = _evidence(files, format, tensors, extras)
    format = detected if format == "auto" else format
    tensors, ignored, notes = repair.repaired(tensors)
    scheme = _scheme(format, tensors)
    try:
        clip_config, stages, note = _infer_config(files, scheme, tensors, found, activation)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    tokenizers.refuse_other_tokenizer(path, folder if described else None, clip_config.vocab_size)
    normalization = pixels.read_normalization(folder, format)
    notes += [note] if note else []
    notes += [normalization.note] if normalization else []
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
        notes=tuple(notes),
        extras=extras if format == "hvpnet" else {},
        normalization=normalization,
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
            parts = set(read_json(index).get("weight_map", {}).values())
            if not parts or any(Path(part).name != part for part in parts):
                raise DataError(f"{index}: has no `weight_map` to files beside it")
            return tuple(path / part for part in sorted(parts))
    for name in OPEN_CLIP:
        if (path / name).is_file():
            return (path / name,)
    raise UsageError(f"{path}: holds none of {', '.join((*HUGGING_FACE, *OPEN_CLIP))}")


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
        has_config = (files[0].parent / OPEN_CLIP_CONFIG).is_file() or files[0].name in OPEN_CLIP
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


def _evidence(
    files: tuple[Path, ...], format: str, tensors: Mapping, extras: Mapping
) -> Evidence | None:
    """What states the activation of a checkpoint without a config of Hugging Face or open_clip."""
    file = files[0]
    card = read_if_there(file.parent / CARD_FILE)  # written by `port --export`
    stated = section(card, "clip_config", "sizes").get("activation")
    if stated in ACTIVATIONS:
        return Evidence(stated, str(file.parent / CARD_FILE), certain=True)
    for names, what in (
        (OPENAI_NUMBERS, "an archive of OpenAI's"),
        ({repair.LONG_POSITIONS}, "the code of Long-CLIP"),
        ({"PatchListProcessing.blocks.0.pcm.norm.weight"}, "the code of HVP-Net"),
    ):
        if names <= set(tensors):
            return Evidence("quick_gelu", what, certain=True)
    if file.name in OPEN_CLIP:  # one repository of the hub often has the files of both libraries
        config = section(read_if_there(file.parent / HUGGING_FACE_CONFIG), "text_config")
        if config.get("hidden_act") in ACTIVATIONS:
            path = file.parent / HUGGING_FACE_CONFIG
            return Evidence(config["hidden_act"], str(path), certain=True)
    if format == "openai":
        return Evidence("quick_gelu", "--format=openai says so", certain=False)
    return from_names(file, extras.get("name"))


def _infer_config(
    files: tuple[Path, ...],
    scheme: NamingScheme,
    tensors: LazyTensors,
    found: Evidence | None,
    asked: str | None,
) -> tuple[ClipConfig, int, str | None]:
    """The sizes, the stages, and a note if the activation is not stated."""
    given: dict[str, Any] = {}
    check: dict[str, tuple[str, Any]] = {}
    folder = files[0].parent
    if scheme.huggingface:
        file = folder / HUGGING_FACE_CONFIG
        if not file.is_file():
            raise UsageError(f"{folder}: has no config.json, which gives the activation and heads")
        given, check = infer_config.config_from_huggingface(read_json(file), file)
    elif (file := folder / OPEN_CLIP_CONFIG).is_file():
        given = open_clip.config_from_open_clip(read_json(file), file)
    if "activation" in given:
        found = Evidence(given.pop("activation"), str(file), certain=True)
    # The tensors are checked before anybody is asked for an activation.
    clip_config, stages = infer_config.infer_config(tensors.shapes, scheme, given, check)
    activation, note = settle(files[0], found, asked)
    return dataclasses.replace(clip_config, activation=activation), stages, note


def _taps(files: tuple[Path, ...]) -> tuple[int, ...] | None:
    """The taps that `port --export` wrote beside the tensors; other checkpoints record none."""
    path = files[0].parent / CARD_FILE
    taps = read_if_there(path).get("taps")
    return tuple(taps) if taps else None

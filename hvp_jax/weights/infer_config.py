"""The model's config from the shapes of a checkpoint's tensors, and from its config.json."""

import math
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.models.clip_config import ACTIVATIONS, ClipConfig, Shape, from_shapes
from hvp_jax.models.distillation.stage import HEADS
from hvp_jax.models.hvpnet import shapes_of
from hvp_jax.models.model_spec import HeadConfig
from hvp_jax.weights import param_mapping, torch_params
from hvp_jax.weights.identity import tokenizers
from hvp_jax.weights.identity.beside import section
from hvp_jax.weights.param_mapping import NamingScheme
from hvp_jax.weights.torch_params import ParamSource


def infer_config(
    shapes: Mapping[str, Shape],
    scheme: NamingScheme = param_mapping.ORIGINAL,
    given: Mapping[str, Any] | None = None,
    check: Mapping[str, tuple[str, Any]] | None = None,
) -> tuple[ClipConfig, int]:
    """Shapes of a checkpoint's tensors -> config, and stages of distillation (0: CLIP alone).

    `given`: fields that no shape determines. `check`: keys of config.json, each with a field
    and the value it should have. Raises DataError that names the key, or the first tensor that
    is missing, unknown, or of a shape that does not fit the others.
    """
    sources = torch_params.match_tensors(shapes, scheme)
    by_path = {source.path: torch_params.layer_shapes(source, shapes) for source in sources}
    _require_grids(sources, shapes)
    config, stages = from_shapes(by_path, **(given or {}))
    for key, (field, value) in (check or {}).items():
        if getattr(config, field) != value:
            raise DataError(
                f"config.json has {key} = {value}, the tensors have {getattr(config, field)}"
            )
    for tower in ("vision", "text"):
        width, head_dim = getattr(config, f"{tower}_width"), getattr(config, f"{tower}_head_dim")
        if not isinstance(head_dim, int) or head_dim < 1 or width % head_dim:
            raise DataError(f"the {tower} tower of width {width} has no heads of width {head_dim}")
    _require_one_embedding(sources, shapes, config)
    check_shapes(sources, shapes, config, stages)
    return config, stages


def _require_grids(sources: list[ParamSource], shapes: Mapping[str, Shape]) -> None:
    """Patches are squares of three channels; positions are the class token and a square."""
    for source in sources:
        name = source.layers[0][0]
        shape = shapes[name]
        if source.path == "clip/visual/patch_embedding":
            valid = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
        elif source.path == "clip/visual/position_embedding":
            valid = (
                len(shape) == 2 and shape[0] > 1 and math.isqrt(shape[0] - 1) ** 2 + 1 == shape[0]
            )
        else:
            continue
        if not valid:
            raise DataError(f"{name}: shape {list(shape)} contains no square grid")


def _require_one_embedding(
    sources: list[ParamSource], shapes: Mapping[str, Shape], config: ClipConfig
) -> None:
    """Both towers project to one width. With CLIP alone, neither is known to be the wrong one."""
    by_path = {source.path: source for source in sources if source.path.endswith("/projection")}
    projections = [by_path[f"clip/{tower}/projection"] for tower in ("visual", "text")]
    clip_alone = not any(source.path.startswith("distill/") for source in sources)
    widths = {
        shape[-1] for source in projections for shape in torch_params.layer_shapes(source, shapes)
    }
    image, text = (source.layers[0][0] for source in projections)
    if clip_alone and len(widths) > 1:
        raise DataError(
            f"{image} of shape {list(shapes[image])} and {text} of shape {list(shapes[text])} "
            "do not project to the same width"
        )
    if config.embed_dim % HEADS:
        raise DataError(
            f"{image}: features of width {config.embed_dim} do not divide into the "
            f"{HEADS} heads of the distillation"
        )


def config_from_huggingface(
    config: dict, path: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """A config.json -> the arguments `given` and `check` of `infer_config`."""
    towers = {
        tower: section(config, f"{tower}_config", f"{tower}_config_dict")
        for tower in ("vision", "text")
    }
    tokenizers.refuse_other_end(towers["text"], path)
    given: dict[str, Any] = {}
    check: dict[str, tuple[str, Any]] = {}
    activations = set()
    defaults = {"vision": (768, 12), "text": (512, 8)}  # CLIPConfig's: width, heads
    for tower, c in towers.items():
        activations.add(c.get("hidden_act", "quick_gelu"))
        width = c.get("hidden_size", defaults[tower][0])
        heads = c.get("num_attention_heads", defaults[tower][1])
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise DataError(f"{path}: {tower}_config has {heads} heads for a width of {width}")
        if c.get("layer_norm_eps", 1e-5) != 1e-5:
            raise DataError(f"{path}: {tower}_config.layer_norm_eps is not CLIP's 1e-5")
        given[f"{tower}_head_dim"] = width // heads
        check[f"{tower}_config.hidden_size"] = (f"{tower}_width", width)
    for tower, key, field in (
        ("vision", "num_hidden_layers", "vision_layers"),
        ("text", "num_hidden_layers", "text_layers"),
        ("vision", "image_size", "image_size"),
        ("vision", "patch_size", "patch_size"),
        ("text", "vocab_size", "vocab_size"),
        ("text", "max_position_embeddings", "context_length"),
    ):
        if key in towers[tower]:
            check[f"{tower}_config.{key}"] = (field, towers[tower][key])
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        raise DataError(
            f"{path}: activation {', '.join(sorted(activations))}; both towers must have the "
            f"same one of {', '.join(ACTIVATIONS)}"
        )
    given["activation"] = activations.pop()
    return given, check


def check_shapes(
    sources: list[ParamSource], shapes: Mapping[str, Shape], config: ClipConfig, stages: int
) -> None:
    """Raises DataError that names the first tensor whose shape does not fit the others."""
    expected_shapes = flatten_dict(shapes_of(config, HeadConfig(stages=max(stages, 1))), sep="/")
    for source in sources:
        layer_shape = expected_shapes[source.path].shape[1 if source.stacked else 0 :]
        for names in source.layers:
            expected = torch_params.torch_shape(layer_shape, source.layout, len(names))
            for name in names:
                if tuple(shapes[name]) != expected:
                    raise DataError(
                        f"{name}: of shape {list(shapes[name])}, but {list(expected)} fits "
                        f"the other tensors (visual projection to {config.embed_dim})"
                    )

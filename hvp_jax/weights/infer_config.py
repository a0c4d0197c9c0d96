"""What the tensors of a checkpoint, and the config beside them, tell of the model."""

import math
from collections.abc import Mapping
from pathlib import Path

from data.errors import DataError
from hvp_jax.models.clip_config import ClipConfig, Shape, from_shapes
from hvp_jax.models.distillation import HEADS
from hvp_jax.models.hvpnet import shapes_of
from hvp_jax.weights import param_mapping, torch_params
from hvp_jax.weights.param_mapping import NamingScheme


def infer_config(
    shapes: Mapping[str, Shape],
    scheme: NamingScheme = param_mapping.ORIGINAL,
    told: Mapping[str, object] | None = None,
    check: Mapping[str, tuple[str, object]] | None = None,
) -> tuple[ClipConfig, int]:
    """Shapes of a checkpoint's tensors -> sizes, and stages of distillation (0: CLIP alone).

    `told`: sizes that no shape tells. `check`: keys of its config, each with a size and the
    value that it should have. Raises DataError that names the first tensor that is missing,
    unknown, or of a shape that does not fit the others', or the key.
    """
    places = torch_params.match_tensors(shapes, scheme)
    of_layers = {place.path: torch_params.layer_shapes(place, shapes) for place in places}
    _require_grids(places, shapes)
    sizes, stages = from_shapes(of_layers, **(told or {}))
    for key, (size, value) in (check or {}).items():
        if getattr(sizes, size) != value:
            raise DataError(
                f"config.json says {key} = {value}, the tensors have {getattr(sizes, size)}"
            )
    for tower in ("vision", "text"):
        width, head = getattr(sizes, f"{tower}_width"), getattr(sizes, f"{tower}_head_dim")
        if not isinstance(head, int) or head < 1 or width % head:
            raise DataError(f"the {tower} tower of width {width} has no heads of width {head}")
    _require_one_embedding(places, shapes, sizes)
    check_shapes(places, shapes, sizes, stages)
    return sizes, stages


def _require_grids(places: list[torch_params.ParamSource], shapes: Mapping[str, Shape]) -> None:
    """Patches are squares of three channels, and positions a square of them after the class."""
    for place in places:
        name = place.layers[0][0]
        shape = shapes[name]
        if place.path == "clip/visual/patch_embedding":
            sound = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
        elif place.path == "clip/visual/position_embedding":
            sound = (
                len(shape) == 2 and shape[0] > 1 and math.isqrt(shape[0] - 1) ** 2 + 1 == shape[0]
            )
        else:
            continue
        if not sound:
            raise DataError(f"{name}: of shape {list(shape)}, in which there is no square grid")


def _require_one_embedding(
    places: list[torch_params.ParamSource], shapes: Mapping[str, Shape], sizes: ClipConfig
) -> None:
    """Both towers end in one space. Of CLIP alone nothing tells which of the two is wrong."""
    ends = {place.path: place for place in places if place.path.endswith("/projection")}
    image, text = (ends[f"clip/{tower}/projection"] for tower in ("visual", "text"))
    clip_alone = not any(place.path.startswith("distill/") for place in places)
    widths = {
        shape[-1] for end in (image, text) for shape in torch_params.layer_shapes(end, shapes)
    }
    image, text = image.layers[0][0], text.layers[0][0]
    if clip_alone and len(widths) > 1:
        raise DataError(
            f"{image}: of shape {list(shapes[image])}, and {text}: of shape "
            f"{list(shapes[text])} do not end in the same width"
        )
    if sizes.embed_dim % HEADS:
        raise DataError(
            f"{image}: features of width {sizes.embed_dim} do not divide into the "
            f"{HEADS} heads of the distillation"
        )


ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def config_from_huggingface(config: dict, path: Path) -> tuple[dict, dict]:
    """What config.json alone tells, and what it tells that the tensors tell too."""
    towers = {
        "vision": config.get("vision_config") or config.get("vision_config_dict") or {},
        "text": config.get("text_config") or config.get("text_config_dict") or {},
    }
    told, check, activations = {}, {}, set()
    usual = {"vision": (768, 12), "text": (512, 8)}  # CLIPConfig's defaults
    for tower, c in towers.items():
        activations.add(c.get("hidden_act", "quick_gelu"))
        width = c.get("hidden_size", usual[tower][0])
        heads = c.get("num_attention_heads", usual[tower][1])
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise DataError(f"{path}: {tower}_config has {heads} heads for a width of {width}")
        if c.get("layer_norm_eps", 1e-5) != 1e-5:
            raise DataError(f"{path}: {tower}_config.layer_norm_eps is not CLIP's 1e-5")
        told[f"{tower}_head_dim"] = width // heads
        check[f"{tower}_config.hidden_size"] = (f"{tower}_width", width)
        if "num_hidden_layers" in c:
            check[f"{tower}_config.num_hidden_layers"] = (
                f"{tower}_layers",
                c["num_hidden_layers"],
            )
    for key, size in (("image_size", "image_size"), ("patch_size", "patch_size")):
        if key in towers["vision"]:
            check[f"vision_config.{key}"] = (size, towers["vision"][key])
    for key, size in (
        ("vocab_size", "vocab_size"),
        ("max_position_embeddings", "context_length"),
    ):
        if key in towers["text"]:
            check[f"text_config.{key}"] = (size, towers["text"][key])
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        raise DataError(f"{path}: activation {', '.join(sorted(activations))}; known are "
                      f"{' and '.join(ACTIVATIONS)}, one for both towers")  # fmt: skip
    told["activation"] = activations.pop()
    return told, check


def config_from_open_clip(config: dict, path: Path) -> dict:
    model = config.get("model_cfg", config)
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise DataError(f"{path}: its model_cfg has no vision_cfg and text_cfg")
    heads = text.get("heads")
    told = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    told["vision_head_dim"] = vision.get("head_width", 64)
    if heads and text.get("width"):
        told["text_head_dim"] = text["width"] // heads
    return told


def check_shapes(
    places: list[torch_params.ParamSource],
    shapes: Mapping[str, Shape],
    sizes: ClipConfig,
    stages: int,
) -> None:
    """Raises DataError that names the first tensor whose shape does not fit the others'."""
    wanted = torch_params.flatten(shapes_of(sizes, max(stages, 1)))
    for place in places:
        ours = wanted[place.path].shape
        ours = ours[1:] if place.stacked else ours
        for tensors_of_layer in place.layers:
            expected = torch_params.torch_shape(ours, place.layout, len(tensors_of_layer))
            for name in tensors_of_layer:
                if tuple(shapes[name]) != expected:
                    raise DataError(
                        f"{name}: of shape {list(shapes[name])}, but {list(expected)} fits "
                        f"the other tensors (visual projection to {sizes.embed_dim})"
                    )

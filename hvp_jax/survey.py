"""What the tensors of a checkpoint, and the config beside them, tell of the model."""

from collections.abc import Mapping
from pathlib import Path

from hvp_jax import names
from hvp_jax.errors import BadData
from hvp_jax.model import shapes_of
from hvp_jax.names import Scheme
from hvp_jax.sizes import Shape, Sizes, from_shapes


def survey(
    shapes: Mapping[str, Shape], scheme: Scheme = names.ORIGINAL, **told: object
) -> tuple[Sizes, int]:
    """Shapes of a checkpoint's tensors -> sizes, and stages of distillation (0: CLIP alone).

    `told`: sizes that no shape tells. Raises BadData that names the first tensor that is
    missing, unknown, or of a shape that does not fit the others'.
    """
    places = names.places(shapes, scheme)
    of_layers = {place.path: names.layer_shapes(place, shapes) for place in places}
    sizes, stages = from_shapes(of_layers, **told)
    check_shapes(places, shapes, sizes, stages)
    return sizes, stages


ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def told_by_hugging_face(config: dict, path: Path) -> tuple[dict, dict]:
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
            raise BadData(f"{path}: {tower}_config has {heads} heads for a width of {width}")
        if c.get("layer_norm_eps", 1e-5) != 1e-5:
            raise BadData(f"{path}: {tower}_config.layer_norm_eps is not CLIP's 1e-5")
        told[f"{tower}_head"] = width // heads
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
        ("vocab_size", "vocabulary"),
        ("max_position_embeddings", "context_length"),
    ):
        if key in towers["text"]:
            check[f"text_config.{key}"] = (size, towers["text"][key])
    if len(activations) > 1 or not activations <= set(ACTIVATIONS):
        raise BadData(f"{path}: activation {', '.join(sorted(activations))}; known are "
                      f"{' and '.join(ACTIVATIONS)}, one for both towers")  # fmt: skip
    told["activation"] = activations.pop()
    return told, check


def told_by_open_clip(config: dict, path: Path) -> dict:
    model = config.get("model_cfg", config)
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise BadData(f"{path}: its model_cfg has no vision_cfg and text_cfg")
    heads = text.get("heads")
    told = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    told["vision_head"] = vision.get("head_width", 64)
    if heads and text.get("width"):
        told["text_head"] = text["width"] // heads
    return told


def check_shapes(
    places: list[names.Place], shapes: Mapping[str, Shape], sizes: Sizes, stages: int
) -> None:
    """Raises BadData that names the first tensor whose shape does not fit the others'."""
    wanted = names.flatten(shapes_of(sizes, max(stages, 1)))
    for place in places:
        ours = wanted[place.path].shape
        ours = ours[1:] if place.stacked else ours
        for tensors_of_layer in place.layers:
            expected = names.torch_shape(ours, place.layout, len(tensors_of_layer))
            for name in tensors_of_layer:
                if tuple(shapes[name]) != expected:
                    raise BadData(
                        f"{name}: of shape {list(shapes[name])}, but {list(expected)} fits "
                        f"the other tensors (visual projection to {sizes.embed_dim})"
                    )

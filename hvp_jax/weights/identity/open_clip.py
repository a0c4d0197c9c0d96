"""An open_clip_config.json: what it says of the towers, and whether they are CLIP's."""

from typing import Any

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.weights.identity.beside import section
from hvp_jax.weights.identity.families import ONLY_CLIP, SIGLIP

# Keys and the values that CLIP's own towers have, which are open_clip's defaults. With another
# value the tensors often have the same names and shapes, but the features are not CLIP's.
VISION = {
    "pool_type": "tok",
    "global_average_pool": False,
    "final_ln_after_pool": False,
    "attentional_pool": False,
    "no_ln_pre": False,
    "input_patchnorm": False,
}
TEXT = {
    "no_causal_mask": False,
    "embed_cls": False,
    "proj_type": "linear",
    "proj_bias": False,
    "tokenizer_kwargs": {},
}
EPSILON = 1e-5
END = 49407  # CLIP's end of text, the greatest id: pooling at it and at the argmax are the same


def config_from_open_clip(config: dict, path: Path) -> dict[str, Any]:
    """An open_clip_config.json -> the argument `given` of `infer_config`.

    Raises DataError that names the key if a tower or the tokenizer is not CLIP's.
    """
    model = config.get("model_cfg", config)
    if not isinstance(model, dict) or not all(
        isinstance(model.get(name, {}), dict) for name in ("vision_cfg", "text_cfg")
    ):
        raise DataError(f"{path}: its model_cfg has no vision_cfg and text_cfg")
    vision, text = section(model, "vision_cfg"), section(model, "text_cfg")
    _refuse_other_towers(model, vision, text, path)
    given: dict[str, Any] = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    given["vision_head_dim"] = vision.get("head_width", 64)
    heads, width = text.get("heads"), text.get("width")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        given["text_head_dim"] = width // heads
    return given


def _refuse_other_towers(model: dict, vision: dict, text: dict, path: Path) -> None:
    names = [str(text.get(key) or "") for key in ("hf_tokenizer_name", "hf_model_name")]
    names.append(str(vision.get("timm_model_name") or ""))
    tokenizer, text_tower, image_tower = names
    if any("siglip" in name.lower() for name in names):
        raise DataError(f"{path}: is {SIGLIP}; {ONLY_CLIP}")
    if "multimodal_cfg" in model:
        raise DataError(f"{path}: is a CoCa model, which writes captions; {ONLY_CLIP}")
    for key, name in (("text tower", text_tower), ("image tower", image_tower)):
        if name:
            raise DataError(f"{path}: its {key} is {name}; {ONLY_CLIP}")
    # The tokenizers of OpenAI's repositories are CLIP's BPE.
    if tokenizer and not tokenizer.startswith("openai/clip-"):
        raise DataError(f"{path}: its tokenizer is {tokenizer}; {ONLY_CLIP}")
    for group, values, expected in (("vision_cfg", vision, VISION), ("text_cfg", text, TEXT)):
        for key, default in expected.items():
            if (values.get(key) or default) != default:
                raise DataError(f"{path}: {group}.{key} is {values[key]!r}; {ONLY_CLIP}")
        epsilon = section(values, "norm_kwargs").get("eps", EPSILON)
        if epsilon != EPSILON:
            raise DataError(f"{path}: {group}.norm_kwargs.eps is {epsilon}, not CLIP's {EPSILON}")
        if values.get("act_kwargs"):
            raise DataError(f"{path}: {group}.act_kwargs is {values['act_kwargs']}; {ONLY_CLIP}")
    pool, end = text.get("pool_type") or "argmax", text.get("eos_id", 2)  # open_clip's defaults
    if pool != "argmax" and (pool, end) != ("eos", text.get("vocab_size", END + 1) - 1):
        where = f" with eos_id {end}" if pool == "eos" else ""
        raise DataError(
            f"{path}: text_cfg.pool_type is {pool}{where}; the text feature can only be read at "
            f"CLIP's end of text, {END}"
        )

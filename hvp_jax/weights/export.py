"""Exports weights as safetensors with PyTorch's names."""

import json
import os

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from data.errors import UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import shapes_of
from hvp_jax.models.model_spec import HeadConfig
from hvp_jax.weights import param_mapping, torch_params


def export_weights(folder: Path, params: dict, card: dict, export: str) -> dict:
    """Writes model.safetensors with PyTorch's names, and config.json for Hugging Face."""
    left_out: list[str] = []
    if export == "huggingface":
        scheme = param_mapping.HUGGING_FACE
        left_out = sorted(set(params) - {"clip"})
        config = huggingface_config(ClipConfig(**card["clip_config"]))
        text = json.dumps(config, indent=2) + "\n"
        storage.write_bytes(folder / "config.json", text.encode())
    else:
        has_head = set(params) != {"clip"}
        if has_head:
            _require_original_head(params, card)
        scheme = param_mapping.NamingScheme(head=has_head)
    state = torch_params.to_torch(params, scheme)
    params.clear()  # frees the arrays that `state` does not share
    for name in list(state):
        state[name] = np.ascontiguousarray(state[name]).reshape(state[name].shape)
    with storage.local_output(folder / "model.safetensors") as local:
        safetensors.numpy.save_file(state, local, metadata={"format": "pt"})
        os.chmod(local, 0o644)  # the library makes it readable by its owner only
    return {"export": export, "left_out": left_out, "tensors": len(state)}


def _require_original_head(params: dict, card: dict) -> None:
    """Raises UsageError if the original has other parameters than these."""
    clip_config = ClipConfig(**card["clip_config"])
    original = shapes_of(clip_config, HeadConfig(stages=max(card["stages"], 1)))
    differing = flatten_dict(params, sep="/").keys() ^ flatten_dict(original, sep="/").keys()
    if differing:
        raise UsageError(
            f"--export=hvpnet: the original's head differs from that of the weights in "
            f"{min(differing)}; --export=huggingface writes CLIP alone"
        )


def huggingface_config(clip_config: ClipConfig) -> dict:
    """The config.json of a CLIPModel with this config."""
    common = {
        "hidden_act": clip_config.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": clip_config.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip_config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": common
        | {
            "model_type": "clip_text_model",
            "hidden_size": clip_config.text_width,
            "intermediate_size": clip_config.text_mlp_dim or 4 * clip_config.text_width,
            "num_hidden_layers": clip_config.text_layers,
            "num_attention_heads": clip_config.text_width // clip_config.text_head_dim,
            "max_position_embeddings": clip_config.context_length,
            "vocab_size": clip_config.vocab_size,
            # The start and end tokens are the two greatest ids.
            "bos_token_id": clip_config.vocab_size - 2,
            "eos_token_id": clip_config.vocab_size - 1,
        },
        "vision_config": common
        | {
            "model_type": "clip_vision_model",
            "hidden_size": clip_config.vision_width,
            "intermediate_size": clip_config.vision_mlp_dim or 4 * clip_config.vision_width,
            "num_hidden_layers": clip_config.vision_layers,
            "num_attention_heads": clip_config.vision_width // clip_config.vision_head_dim,
            "image_size": clip_config.image_size,
            "patch_size": clip_config.patch_size,
        },
    }

"""Weights written as safetensors with PyTorch's names."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.weights import param_mapping, torch_params


def export_weights(folder: Path, params: dict, card: dict, export: str) -> dict:
    """Writes model.safetensors with PyTorch's names, and config.json for Hugging Face."""
    sizes, left_out = ClipConfig(**card["clip_config"]), []
    if export == "huggingface":
        scheme = param_mapping.HUGGING_FACE
        left_out = sorted(set(params) - {"clip"})
        text = json.dumps(huggingface_config(sizes), indent=2) + "\n"
        (folder / "config.json").write_text(text)
    else:
        scheme = param_mapping.NamingScheme(head=bool(card["stages"]))
    state = torch_params.to_torch(params, scheme)
    params.clear()  # what is not shared with `state` is let go
    for name in list(state):
        state[name] = np.ascontiguousarray(state[name]).reshape(state[name].shape)
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(state, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library makes it readable to its owner alone
    return {"export": export, "left_out": left_out, "tensors": len(state)}


def huggingface_config(sizes: ClipConfig) -> dict:
    """The config.json of a CLIPModel of these sizes."""
    common = {
        "hidden_act": sizes.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": sizes.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": sizes.embed_dim,
        "logit_scale_init_value": 2.6592,
        "torch_dtype": "float32",
        "text_config": common
        | {
            "model_type": "clip_text_model",
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_mlp_dim or 4 * sizes.text_width,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_width // sizes.text_head_dim,
            "max_position_embeddings": sizes.context_length,
            "vocab_size": sizes.vocab_size,
            # The two greatest ids begin and end a text.
            "bos_token_id": sizes.vocab_size - 2,
            "eos_token_id": sizes.vocab_size - 1,
        },
        "vision_config": common
        | {
            "model_type": "clip_vision_model",
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_mlp_dim or 4 * sizes.vision_width,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_width // sizes.vision_head_dim,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
        },
    }

"""Random checkpoints as PyTorch libraries write them, by default of a small model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.torch import save_file

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import shapes_of
from hvp_jax.models.model_spec import HeadConfig
from hvp_jax.weights import param_mapping, torch_params

SMALL = ClipConfig(
    image_size=32,
    patch_size=16,
    vision_width=64,
    vision_layers=3,
    text_width=64,
    text_layers=2,
    embed_dim=32,
    context_length=16,
    vocab_size=100,
)


def sized(**sizes: int) -> ClipConfig:
    """The small model with other sizes."""
    return dataclasses.replace(SMALL, **sizes)


def random_state(config: ClipConfig = SMALL, seed: int = 0, head: bool = False) -> dict:
    """Tensors with the original's names, scaled so that no layer vanishes or explodes."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, x in flatten_dict(shapes_of(config, HeadConfig()), sep="/").items():
        if not head and not path.startswith("clip/"):
            continue
        w = rng.standard_normal(x.shape, np.float32)
        fan = x.shape[-2] if len(x.shape) > 1 else 100
        flat[path] = np.float32(path.endswith("scale")) + w / np.float32(np.sqrt(fan))
    params = unflatten_dict(flat, sep="/")
    state = torch_params.to_torch(params, param_mapping.NamingScheme(head=head))
    return {name: torch.tensor(np.array(x, order="C")) for name, x in state.items()}


def openai_names(state: dict) -> dict:
    return {name.removeprefix("clip."): x for name, x in state.items()}


def nested_names(state: dict) -> dict:
    """open_clip's names of a model with a custom text tower."""
    return {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": x
        for name, x in openai_names(state).items()
    }


def hugging_face_names(state: dict) -> dict:
    params = torch_params.from_torch(
        {name: x.numpy() for name, x in state.items()}, param_mapping.NamingScheme(head=False)
    )
    renamed = torch_params.to_torch(params, param_mapping.HUGGING_FACE)
    return {name: torch.tensor(np.array(x, order="C")) for name, x in renamed.items()}


class Tree(torch.nn.Module):
    """A module that can be traced, with the tensors of `state` under their dotted names."""

    def __init__(self, state: dict):
        super().__init__()
        for name, x in state.items():
            module, (*parents, leaf) = self, name.split(".")
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, Tree({}))
                module = module._modules[parent]
            module.register_parameter(leaf, torch.nn.Parameter(x, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(path: Path, state: dict) -> None:
    """Like OpenAI's archives: half precision, with three numbers among the tensors."""
    tree = Tree({name: x.half() for name, x in state.items()})
    for name, value in (("input_resolution", 32), ("context_length", 16), ("vocab_size", 100)):
        tree.register_buffer(name, torch.tensor(value))
    torch.jit.save(torch.jit.trace(tree, torch.zeros(1)), str(path))


def hugging_face_config(config: ClipConfig, activation: str = "quick_gelu") -> dict:
    text = {
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_width // config.text_head_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "eos_token_id": config.vocab_size - 1,
        "hidden_act": activation,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_width // config.vision_head_dim,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": activation,
    }
    common = {"model_type": "clip", "projection_dim": config.embed_dim}
    return common | {"text_config": text, "vision_config": vision}


def write(folder: Path, kind: str, state: dict, config: ClipConfig = SMALL) -> Path:
    """Writes `state` as one of KINDS and returns its path; all but hvpnet hold CLIP alone."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = openai_names(state)
    if kind == "torchscript":
        write_torchscript(folder / "ViT.pt", flat)
        return folder / "ViT.pt"
    if kind == "state_dict":
        torch.save(flat, folder / "ViT-B-32.pt")  # OpenAI's name states the activation
        return folder / "ViT-B-32.pt"
    if kind == "huggingface":
        save_file(hugging_face_names(state), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(hugging_face_config(config)))
        return folder
    if kind == "huggingface_bin":
        module = hugging_face_names(state)
        module["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        torch.save(module, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(hugging_face_config(config, "gelu")))
        return folder
    if kind == "open_clip":
        module = {f"module.{name}": x for name, x in flat.items()}
        name = "2024_01_01-model_ViT-B-32-quickgelu-lr_0.001"
        torch.save({"epoch": 3, "name": name, "state_dict": module}, folder / "epoch_3.pt")
        return folder / "epoch_3.pt"
    if kind == "open_clip_nested":
        save_file(nested_names(state), folder / "open_clip_model.safetensors")
        model_cfg = {"embed_dim": config.embed_dim, "vision_cfg": {}, "text_cfg": {}}
        text = json.dumps({"model_cfg": model_cfg})
        (folder / "open_clip_config.json").write_text(text)
        return folder
    best = np.float64(41.5)  # the original's trainer pickles a NumPy number
    torch.save({"epoch": 1, "state_dict": state, "best_score": best}, folder / "best.pth")
    return folder / "best.pth"


def optimizer_of(state: dict, steps: int) -> dict:
    """The original's optimizer state after `steps` updates, with constant moments."""
    order = [
        name
        for decayed in (True, False)
        for in_clip in (True, False)
        for name in state
        if ("bias" not in name) == decayed and ("clip." in name) == in_clip
    ]
    moments = {
        i: {
            "step": steps,
            "next_m": torch.full_like(state[name], 1e-3),
            "next_v": torch.full_like(state[name], 1e-5),
        }
        for i, name in enumerate(order)
        if "conv1" not in name
    }
    group = {"params": list(range(len(order))), "lr": 1e-4, "t_total": 20, "warmup": 0.1}
    return {"state": moments, "param_groups": [group]}


KINDS = {  # name: (format, activation)
    "torchscript": ("openai", "quick_gelu"),
    "state_dict": ("openai", "quick_gelu"),
    "huggingface": ("huggingface", "quick_gelu"),
    "huggingface_bin": ("huggingface", "gelu"),
    "open_clip": ("open_clip", "quick_gelu"),
    "open_clip_nested": ("open_clip", "gelu"),
    "hvpnet": ("hvpnet", "quick_gelu"),
}

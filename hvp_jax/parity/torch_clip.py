"""CLIP's two towers in PyTorch, layer by layer: what `parity --source` compares ours with.

Straight from the tensors of a checkpoint, by PyTorch's own layers. Needs PyTorch; nothing
but `parity --source` imports this file.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hvp_jax.models.clip_config import ClipConfig

ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}


def _norm(x: torch.Tensor, state: Mapping, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _tower(
    x: torch.Tensor,
    state: Mapping,
    name: str,
    layers: int,
    head: int,
    activation: str,
    mask: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """[N, S, width] -> the same after each block. `mask` [S, S] or [N heads, S, S] is added."""
    hidden, width = [], x.shape[-1]
    for i in range(layers):
        block = f"{name}.resblocks.{i}"
        attention = torch.nn.MultiheadAttention(width, width // head, batch_first=True)
        attention.load_state_dict(
            {
                key: state[f"{block}.attn.{key}"]
                for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            }
        )
        attention = attention.to(x.dtype)
        y = _norm(x, state, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = _norm(x, state, f"{block}.ln_2")
        y = F.linear(y, state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"])
        y = ACTIVATIONS[activation](y)
        x = x + F.linear(y, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
        hidden.append(x)
    return hidden


@torch.no_grad()
def image(state: Mapping, sizes: ClipConfig, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pixels [N, 3, S, S] -> hidden states [N, P, width] by layer, and features [N, embed]."""
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=sizes.patch_size)
    x = x.flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + state["visual.positional_embedding"]
    x = _norm(x, state, "visual.ln_pre")
    hidden = _tower(
        x,
        state,
        "visual.transformer",
        sizes.vision_layers,
        sizes.vision_head_dim,
        sizes.activation,
    )
    found = {f"image/layer{i + 1}": x for i, x in enumerate(hidden)}
    last = _norm(hidden[-1], state, "visual.ln_post")
    return found | {"image/features": last[:, 0] @ state["visual.proj"]}


@torch.no_grad()
def text(state: Mapping, sizes: ClipConfig, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ids [N, W], no padding -> hidden states [N, W, width] by layer, and features [N, embed]."""
    length = ids.shape[1]
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][:length]
    mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    hidden = _tower(
        x, state, "transformer", sizes.text_layers, sizes.text_head_dim, sizes.activation, mask
    )
    found = {f"text/layer{i + 1}": x for i, x in enumerate(hidden)}
    last = _norm(hidden[-1], state, "ln_final") @ state["text_projection"]
    return found | {"text/features": last[torch.arange(len(ids)), ids.argmax(dim=1)]}

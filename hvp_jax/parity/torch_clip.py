"""CLIP's two towers in PyTorch, as functions of tensors named as in the original's checkpoint.

`parity --source` compares their hidden states with the model's; `benchmarks/torch_hvpnet.py`
and `benchmarks/torch_run.py` train them. They compute in the type of the tensors. Requires
PyTorch; hence no other module imports this file at the top.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from hvp_jax.models.clip_config import ClipConfig

State = Mapping[str, torch.Tensor]
ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}


def layer_norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def linear(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def split_heads(x: torch.Tensor, parts: int, heads: int) -> tuple[torch.Tensor, ...]:
    """[N, S, parts * heads * d] -> `parts` tensors [N, heads, S, d]."""
    return x.reshape(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def tower(
    x: torch.Tensor,
    state: State,
    name: str,
    *,
    heads: int,
    activation: str,
    causal: bool,
    layers: Sequence[int],
    mask: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """[N, S, width] -> the same after each of `layers`, ascending and counted from 1.

    `mask` [N, S] bool: the tokens that are attended to; None: all.
    """
    attend = None
    if mask is not None:
        attend = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)  # [N, 1, S, S]
        attend, causal = attend.tril() if causal else attend, False
    hidden = []
    for i in range(layers[-1]):
        block = f"{name}.resblocks.{i}"
        y = layer_norm(x, state, f"{block}.ln_1")
        y = F.linear(y, state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"])
        query, key, value = split_heads(y, 3, heads)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=attend, is_causal=causal)
        x = x + linear(y.transpose(1, 2).reshape(x.shape), state, f"{block}.attn.out_proj")
        y = linear(layer_norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc")
        x = x + linear(ACTIVATIONS[activation](y), state, f"{block}.mlp.c_proj")
        if i + 1 in layers:
            hidden.append(x)
    return hidden


def encode_image(
    pixels: torch.Tensor, state: State, config: ClipConfig, layers: Sequence[int]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Pixels [N, 3, S, S] -> hidden states [N, P, width] after each of `layers`, and all of them
    normalised and projected [L, N, P, embed]; token 0 is the class token."""
    x = F.conv2d(pixels, state["clip.visual.conv1.weight"], stride=config.patch_size)
    x = x.flatten(2).transpose(1, 2)
    class_token = state["clip.visual.class_embedding"].expand(len(x), 1, -1).to(x.dtype)
    x = torch.cat([class_token, x], dim=1) + state["clip.visual.positional_embedding"]
    hidden = tower(
        layer_norm(x, state, "clip.visual.ln_pre"),
        state,
        "clip.visual.transformer",
        heads=config.vision_width // config.vision_head_dim,
        activation=config.activation,
        causal=False,
        layers=layers,
    )
    tokens = layer_norm(torch.stack(hidden), state, "clip.visual.ln_post")
    return hidden, tokens @ state["clip.visual.proj"]


def encode_text(
    ids: torch.Tensor,
    state: State,
    config: ClipConfig,
    layers: Sequence[int],
    *,
    mask: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Ids [N, W] -> hidden states [N, W, width] after each of `layers`, words [N, W, embed] of
    the last, and sentence [N, embed], the word at the greatest id.

    `mask` [N, W] bool: the words that are no padding; None: all.
    """
    if mask is not None:
        # The first word is never masked, so that the softmax of an empty caption is not 0/0.
        mask = mask | (torch.arange(ids.shape[1], device=ids.device) == 0)
    x = F.embedding(ids, state["clip.token_embedding.weight"])
    hidden = tower(
        x + state["clip.positional_embedding"][: ids.shape[1]],
        state,
        "clip.transformer",
        heads=config.text_width // config.text_head_dim,
        activation=config.activation,
        causal=True,
        layers=layers,
        mask=mask,
    )
    words = layer_norm(hidden[-1], state, "clip.ln_final") @ state["clip.text_projection"]
    return hidden, words, words[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]

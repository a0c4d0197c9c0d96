"""HVP-Net's loss in PyTorch, written for speed: the peer that `step_peer.py` times.

Tensors are named as in a checkpoint of the original. The towers are those of
`hvp_jax/parity/torch_clip.py`; clustering and merging are done as in the original (`cdist`,
`topk`, sums by index), and all words and patches are scored at once. Every frame and word is
valid here, so there are no masks. The caller sets the precision with `torch.autocast`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.distillation import EPSILON, HEADS, NEIGHBOURS
from hvp_jax.models.hvpnet import PIXEL_MEAN, PIXEL_STD
from hvp_jax.parity.torch_clip import (
    State,
    encode_image,
    encode_text,
    layer_norm,
    linear,
    split_heads,
)


def encode_frames(
    video: torch.Tensor, state: State, config: ClipConfig, taps: tuple[int, ...]
) -> torch.Tensor:
    """uint8 frames [B, T, H, W, 3] -> every token at every tap [L, B, T, P, D]."""
    mean, std = (torch.tensor(x, device=video.device) for x in (PIXEL_MEAN, PIXEL_STD))
    pixels = ((video.float() / 255 - mean) / std).flatten(0, 1).permute(0, 3, 1, 2)
    _, tokens = encode_image(pixels, state, config, taps)
    return tokens.reshape(len(taps), *video.shape[:2], *tokens.shape[2:])


@torch.no_grad()
def cluster(x: torch.Tensor, noise: bool) -> torch.Tensor:
    """DPC-KNN in float32: tokens [B, N, D] -> the cluster of each [B, N], of ceil(N / 2)."""
    x = x.float()
    batch, tokens, width = x.shape
    distance = torch.cdist(x, x) * width**-0.5
    nearest = distance.topk(NEIGHBOURS, dim=2, largest=False).values
    density = (-nearest.square().mean(dim=2)).exp()
    if noise:
        density = density + EPSILON * torch.rand_like(density)
    denser = density[:, None, :] > density[:, :, None]
    greatest = distance.amax(dim=(1, 2))[:, None, None]
    parent = torch.where(denser, distance, greatest).amin(dim=2)
    centres = (density * parent).topk((tokens + 1) // 2, dim=1).indices  # [B, M]
    to_centre = distance.gather(1, centres[:, :, None].expand(-1, -1, tokens))
    clusters = to_centre.argmin(dim=1)
    index = torch.arange(centres.shape[1], device=x.device).expand(batch, -1)
    return clusters.scatter(1, centres, index)  # a centre is in its own cluster


def merge(x: torch.Tensor, score: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """Mean of each cluster weighted by exp(score): [B, N, D], [B, N], [B, N] -> [B, M, D]."""
    batch, tokens, width = x.shape
    merged = (tokens + 1) // 2
    flat = (clusters + merged * torch.arange(batch, device=x.device)[:, None]).flatten()
    weight = score.exp().flatten()
    total = weight.new_zeros(batch * merged).index_add(0, flat, weight) + EPSILON
    share = weight / total[flat]
    summed = x.new_zeros(batch * merged, width).index_add(0, flat, x.flatten(0, 1) * share[:, None])
    return summed.reshape(batch, merged, width)


def distill(x: torch.Tensor, state: State, stages: int, noise: bool) -> torch.Tensor:
    """Tokens [B, N, D] -> salient tokens [B, M, D], halved by each stage."""
    for i in range(stages):
        block = f"PatchListProcessing.blocks.{i}"
        pcm, att = f"{block}.pcm", f"{block}.att"
        y = F.conv1d(x.transpose(1, 2), state[f"{pcm}.conv.conv.weight"], padding=1).transpose(1, 2)
        x = layer_norm(x + y, state, f"{pcm}.norm")
        with torch.autocast(x.device.type, enabled=False):  # scores and clusters in float32
            x = x.float()
            score = linear(x, state, f"{pcm}.score")[..., 0]
            merged = merge(x, score, cluster(x, noise))
        query = linear(layer_norm(merged, state, f"{att}.norm1"), state, f"{att}.attn.q")
        key_value = linear(layer_norm(x, state, f"{att}.norm1"), state, f"{att}.attn.kv")
        (query,) = split_heads(query, 1, HEADS)
        key, value = split_heads(key_value, 2, HEADS)
        bias = score.to(query.dtype)[:, None, None, :].expand(-1, HEADS, query.shape[2], -1)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        y = y.transpose(1, 2).reshape(merged.shape)
        x = merged + linear(y, state, f"{att}.attn.proj")
    return x


def token_weights(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Features [..., N, D] -> weights [..., N] that sum to 1."""
    x = F.relu(linear(x, state, f"{name}.0"))
    x = F.relu(linear(x, state, f"{name}.2"))
    return linear(x, state, f"{name}.4")[..., 0].float().softmax(dim=-1)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.float(), dim=-1)


def loss(
    state: State,
    batch: Mapping[str, torch.Tensor],
    *,
    config: ClipConfig,
    taps: tuple[int, ...],
    stages: int,
    noise: bool,
) -> torch.Tensor:
    """`video` uint8 [B, T, H, W, 3], `text_ids` [B, W] -> the loss, summed over terms and taps."""
    _, words, sentence = encode_text(batch["text_ids"], state, config, (config.text_layers,))
    word_weights = token_weights(words, state, "w_feat_w")  # [B, W]
    x = encode_frames(batch["video"], state, config, taps)
    frames = x[..., 0, :]  # [L, B, T, D]
    count, size, length, tokens, width = x.shape
    patches = distill(x.reshape(count * size, length * tokens, width), state, stages, noise)
    patches = patches.reshape(count, size, -1, width)
    patch_weights = token_weights(patches, state, "p_feat_w")
    frame_weights = token_weights(frames, state, "f_feat_w")
    words, sentence, patches, frames = map(unit, (words, sentence, patches, frames))
    scale, target = state["clip.logit_scale"].exp(), torch.arange(size, device=x.device)
    total = x.new_zeros((), dtype=torch.float32)
    for tap in range(count):
        cosine = torch.einsum("awd,bmd->abwm", words, patches[tap])
        by_word = torch.einsum("abw,aw->ab", cosine.amax(dim=3).float(), word_weights)
        by_patch = torch.einsum("abm,bm->ab", cosine.amax(dim=2).float(), patch_weights[tap])
        with torch.autocast(x.device.type, enabled=False):
            patch_sum = torch.einsum("bm,bmd->bd", patch_weights[tap], patches[tap])
            frame_sum = torch.einsum("bt,btd->bd", frame_weights[tap], frames[tap])
            tables = ((by_word + by_patch) / 2, sentence @ patch_sum.T, sentence @ frame_sum.T)
            for table in tables:
                logits = scale * table.float()
                total = total + F.cross_entropy(logits, target)
                total = total + F.cross_entropy(logits.T, target)
    return total

"""HVP-Net's loss in PyTorch, written for speed: what `step_peer.py` times ours against.

All of it on tensors named as in a checkpoint of the original: attention by
`scaled_dot_product_attention`, clustering and merging as the original does (`cdist`, `topk`,
sums by index), the whole table of words and patches at once. Every frame and word is
valid here, which spares the masks. Precision is the caller's, by `torch.autocast`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.distillation import EPSILON, HEADS, NEIGHBOURS
from hvp_jax.models.hvpnet import PIXEL_MEAN, PIXEL_STD
from hvp_jax.parity.torch_clip import ACTIVATIONS

Params = Mapping[str, torch.Tensor]


def norm(x: torch.Tensor, p: Params, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def linear(x: torch.Tensor, p: Params, name: str) -> torch.Tensor:
    return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def split_heads(x: torch.Tensor, parts: int, heads: int) -> tuple[torch.Tensor, ...]:
    """[N, S, parts * heads * d] -> `parts` tensors [N, heads, S, d]."""
    return x.reshape(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def tower(
    x: torch.Tensor, p: Params, name: str, heads: int, activation: str, causal: bool, taps: tuple
) -> list[torch.Tensor]:
    """[N, S, width] -> the same after each of the layers `taps`, counted from 1."""
    kept = []
    for i in range(taps[-1]):
        block = f"{name}.resblocks.{i}"
        y = norm(x, p, f"{block}.ln_1")
        y = F.linear(y, p[f"{block}.attn.in_proj_weight"], p[f"{block}.attn.in_proj_bias"])
        y = F.scaled_dot_product_attention(*split_heads(y, 3, heads), is_causal=causal)
        x = x + linear(y.transpose(1, 2).reshape(x.shape), p, f"{block}.attn.out_proj")
        y = linear(norm(x, p, f"{block}.ln_2"), p, f"{block}.mlp.c_fc")
        x = x + linear(ACTIVATIONS[activation](y), p, f"{block}.mlp.c_proj")
        if i + 1 in taps:
            kept.append(x)
    return kept


def vision(video: torch.Tensor, p: Params, s: ClipConfig, taps: tuple) -> torch.Tensor:
    """uint8 frames [B, T, H, W, 3] -> every token at every tap [L, B, T, P, D]."""
    mean, std = (torch.tensor(x, device=video.device) for x in (PIXEL_MEAN, PIXEL_STD))
    pixels = ((video.float() / 255 - mean) / std).flatten(0, 1).permute(0, 3, 1, 2)
    x = F.conv2d(pixels, p["clip.visual.conv1.weight"], stride=s.patch_size)
    x = x.flatten(2).transpose(1, 2)
    first = p["clip.visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first.to(x.dtype), x], dim=1) + p["clip.visual.positional_embedding"]
    x = norm(x, p, "clip.visual.ln_pre")
    heads = s.vision_width // s.vision_head_dim
    hidden = tower(x, p, "clip.visual.transformer", heads, s.activation, False, taps)
    x = norm(torch.stack(hidden), p, "clip.visual.ln_post") @ p["clip.visual.proj"]
    return x.reshape(len(taps), *video.shape[:2], *x.shape[2:])


def text(ids: torch.Tensor, p: Params, s: ClipConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, W] -> words [B, W, D] and sentence [B, D], the word at the greatest id."""
    x = F.embedding(ids, p["clip.token_embedding.weight"])
    x = x + p["clip.positional_embedding"][: ids.shape[1]]
    heads = s.text_width // s.text_head_dim
    x = tower(x, p, "clip.transformer", heads, s.activation, True, (s.text_layers,))[0]
    words = norm(x, p, "clip.ln_final") @ p["clip.text_projection"]
    return words, words[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]


@torch.no_grad()
def cluster(x: torch.Tensor, noise: bool) -> torch.Tensor:
    """DPC-KNN in float32: tokens [B, N, D] -> the cluster of each [B, N]; ceil(N / 2) of them."""
    x = x.float()
    batch, tokens, width = x.shape
    distance = torch.cdist(x, x) * width**-0.5
    near = distance.topk(NEIGHBOURS, dim=2, largest=False).values
    density = (-near.square().mean(dim=2)).exp()
    if noise:
        density = density + EPSILON * torch.rand_like(density)
    denser = density[:, None, :] > density[:, :, None]
    greatest = distance.amax(dim=(1, 2))[:, None, None]
    parent = torch.where(denser, distance, greatest).amin(dim=2)
    centres = (density * parent).topk((tokens + 1) // 2, dim=1).indices  # [B, M]
    to_centre = distance.gather(1, centres[:, :, None].expand(-1, -1, tokens))
    of = to_centre.argmin(dim=1)
    number = torch.arange(centres.shape[1], device=x.device).expand(batch, -1)
    return of.scatter(1, centres, number)  # a centre joins itself


def merge(x: torch.Tensor, score: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Mean of each cluster weighted by exp(score): [B, N, D], [B, N], [B, N] -> [B, M, D]."""
    batch, tokens, width = x.shape
    merged = (tokens + 1) // 2
    flat = (of + merged * torch.arange(batch, device=x.device)[:, None]).flatten()
    weight = score.exp().flatten()
    total = weight.new_zeros(batch * merged).index_add(0, flat, weight) + EPSILON
    share = weight / total[flat]
    summed = x.new_zeros(batch * merged, width).index_add(0, flat, x.flatten(0, 1) * share[:, None])
    return summed.reshape(batch, merged, width)


def distill(x: torch.Tensor, p: Params, stages: int, noise: bool) -> torch.Tensor:
    """Tokens [B, N, D] -> salient tokens [B, M, D], halved by each stage."""
    for i in range(stages):
        block = f"PatchListProcessing.blocks.{i}"
        pcm, att = f"{block}.pcm", f"{block}.att"
        y = F.conv1d(x.transpose(1, 2), p[f"{pcm}.conv.conv.weight"], padding=1).transpose(1, 2)
        x = norm(x + y, p, f"{pcm}.norm")
        with torch.autocast(x.device.type, enabled=False):  # scores and clusters in float32
            x = x.float()
            score = linear(x, p, f"{pcm}.score")[..., 0]
            merged = merge(x, score, cluster(x, noise))
        query = linear(norm(merged, p, f"{att}.norm1"), p, f"{att}.attn.q")
        key_value = linear(norm(x, p, f"{att}.norm1"), p, f"{att}.attn.kv")
        (query,) = split_heads(query, 1, HEADS)
        key, value = split_heads(key_value, 2, HEADS)
        bias = score.to(query.dtype)[:, None, None, :].expand(-1, HEADS, query.shape[2], -1)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = merged + linear(y.transpose(1, 2).reshape(merged.shape), p, f"{att}.attn.proj")
    return x


def token_weights(x: torch.Tensor, p: Params, name: str) -> torch.Tensor:
    """Features [..., N, D] -> weights [..., N] that sum to 1."""
    x = F.relu(linear(x, p, f"{name}.0"))
    x = F.relu(linear(x, p, f"{name}.2"))
    return linear(x, p, f"{name}.4")[..., 0].float().softmax(dim=-1)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.float(), dim=-1)


def loss(
    p: Params, batch: Mapping, s: ClipConfig, taps: tuple, stages: int, noise: bool
) -> torch.Tensor:
    """`video` uint8 [B, T, H, W, 3], `text_ids` [B, W] -> the loss, summed over terms and taps."""
    words, sentence = text(batch["text_ids"], p, s)
    of_words = token_weights(words, p, "w_feat_w")  # [B, W]
    x = vision(batch["video"], p, s, taps)
    frames = x[..., 0, :]  # [L, B, T, D]
    count, size, length, tokens, width = x.shape
    patches = distill(x.reshape(count * size, length * tokens, width), p, stages, noise)
    patches = patches.reshape(count, size, -1, width)
    of_patches = token_weights(patches, p, "p_feat_w")
    of_frames = token_weights(frames, p, "f_feat_w")
    words, sentence, patches, frames = map(unit, (words, sentence, patches, frames))
    scale, target = p["clip.logit_scale"].exp(), torch.arange(size, device=x.device)
    total = x.new_zeros((), dtype=torch.float32)
    for tap in range(count):
        cosine = torch.einsum("awd,bmd->abwm", words, patches[tap])
        by_word = torch.einsum("abw,aw->ab", cosine.amax(dim=3).float(), of_words)
        by_patch = torch.einsum("abm,bm->ab", cosine.amax(dim=2).float(), of_patches[tap])
        with torch.autocast(x.device.type, enabled=False):
            patch_sum = torch.einsum("bm,bmd->bd", of_patches[tap], patches[tap])
            frame_sum = torch.einsum("bt,btd->bd", of_frames[tap], frames[tap])
            tables = ((by_word + by_patch) / 2, sentence @ patch_sum.T, sentence @ frame_sum.T)
            for table in tables:
                logits = scale * table.float()
                total = total + F.cross_entropy(logits, target)
                total = total + F.cross_entropy(logits.T, target)
    return total

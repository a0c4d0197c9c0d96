"""HVP-Net's loss in PyTorch: the peer that `step_peer.py` times, and the model of `torch_run.py`.

Tensors are named as in a checkpoint of the original. The towers are those of
`hvp_jax/parity/torch_clip.py`; clustering and merging are done as in the original (`cdist`,
`topk`, sums by index), and all words and patches are scored at once.

By default token weights are a softmax and each text uses its own word weights. In the form of
the `original` they are raw, and every text uses the word weights of the clip's own caption.
Padded words and frames are scored like others: only the text tower's attention knows a mask.
Everything is in the type of the weights; scores and clusters are at least float32. The caller
sets another precision with `torch.autocast`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hvp_jax.models.clip_config import PAPER_TERMS, ClipConfig
from hvp_jax.models.distillation.clustering import EPSILON, NEIGHBOURS
from hvp_jax.models.distillation.stage import HEADS
from hvp_jax.models.layers import PIXEL_MEAN, PIXEL_STD
from hvp_jax.parity.torch_clip import (
    State,
    encode_image,
    encode_text,
    layer_norm,
    linear,
    split_heads,
)


class Model(NamedTuple):
    """Everything but the weights."""

    config: ClipConfig
    taps: tuple[int, ...]  # layers of the vision tower, counted from 1
    stages: int
    noise: bool = False  # breaks ties of density in the clustering
    original: bool = False
    half_towers: bool = False  # rounds the towers' outputs to float16, as the original's evaluation


class TextFeatures(NamedTuple):
    words: torch.Tensor  # [A, W, D], unit length
    word_weights: torch.Tensor  # [A, W]
    sentence: torch.Tensor  # [A, D], unit length


class VideoFeatures(NamedTuple):
    patches: torch.Tensor  # [L, B, M, D], unit length
    patch_weights: torch.Tensor  # [L, B, M]
    frames: torch.Tensor  # [L, B, T, D], unit length
    frame_weights: torch.Tensor  # [L, B, T]


def wide(x: torch.Tensor) -> torch.Tensor:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tower_output(x: torch.Tensor, model: Model) -> torch.Tensor:
    return x.half().to(x.dtype) if model.half_towers else x


def encode_frames(
    video: torch.Tensor, mask: torch.Tensor | None, state: State, model: Model
) -> torch.Tensor:
    """uint8 frames [B, T, H, W, 3] -> every token at every tap [L, B, T, P, D].

    A frame that `mask` [B, T] excludes is zero after normalisation.
    """
    dtype = wide(state["clip.visual.conv1.weight"]).dtype
    mean, std = (torch.tensor(x, device=video.device, dtype=dtype) for x in (PIXEL_MEAN, PIXEL_STD))
    pixels = (video.to(dtype) / 255 - mean) / std
    if mask is not None:
        pixels = pixels.where(mask[:, :, None, None, None], 0)
    pixels = pixels.flatten(0, 1).permute(0, 3, 1, 2)
    _, tokens = encode_image(pixels, state, model.config, model.taps)
    return tokens.reshape(len(model.taps), *video.shape[:2], *tokens.shape[2:])


@torch.no_grad()
def cluster(x: torch.Tensor, noise: bool) -> torch.Tensor:
    """DPC-KNN: tokens [B, N, D] -> the cluster of each [B, N], of ceil(N / 2)."""
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
        with torch.autocast(x.device.type, enabled=False):  # scores and clusters are wide
            x = wide(x)
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


def token_weights(x: torch.Tensor, state: State, name: str, original: bool) -> torch.Tensor:
    """Features [..., N, D] -> weights [..., N] that sum to 1, or the raw ones of the original."""
    x = F.relu(linear(x, state, f"{name}.0"))
    x = F.relu(linear(x, state, f"{name}.2"))
    raw = wide(linear(x, state, f"{name}.4")[..., 0])
    return raw if original else raw.softmax(dim=-1)


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(wide(x), dim=-1)


def text_features(
    ids: torch.Tensor, mask: torch.Tensor | None, state: State, model: Model
) -> TextFeatures:
    """Token ids [A, W], and which of them are no padding."""
    layers = (model.config.text_layers,)
    _, words, sentence = encode_text(ids, state, model.config, layers, mask=mask)
    words, sentence = tower_output(words, model), tower_output(sentence, model)
    weights = token_weights(words, state, "w_feat_w", model.original)
    return TextFeatures(unit(words), weights, unit(sentence))


def video_features(
    video: torch.Tensor, mask: torch.Tensor | None, state: State, model: Model
) -> VideoFeatures:
    """uint8 frames [B, T, H, W, 3], and which of them [B, T] are no padding."""
    x = tower_output(encode_frames(video, mask, state, model), model)
    frames = x[..., 0, :]  # [L, B, T, D]
    count, size, length, tokens, width = x.shape
    tokens_of_clip = x.reshape(count * size, length * tokens, width)
    patches = distill(tokens_of_clip, state, model.stages, model.noise)
    patches = patches.reshape(count, size, -1, width)
    patch_weights = token_weights(patches, state, "p_feat_w", model.original)
    frame_weights = token_weights(frames, state, "f_feat_w", model.original)
    return VideoFeatures(unit(patches), patch_weights, unit(frames), frame_weights)


def scores(
    text: TextFeatures, video: VideoFeatures, tap: int, paired_weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of all texts and clips at a tap, a table [A, B] for each of `PAPER_TERMS`.

    `paired_weights` [B, W]: word weights of each clip's own caption; None: each text uses its own.
    """
    patches, patch_weights = video.patches[tap], video.patch_weights[tap]
    cosine = torch.einsum("awd,bmd->abwm", text.words, patches)
    by_word = wide(cosine.amax(dim=3))  # [A, B, W]
    if paired_weights is None:
        by_word = torch.einsum("abw,aw->ab", by_word, text.word_weights)
    else:
        by_word = torch.einsum("abw,bw->ab", by_word, paired_weights)
    by_patch = torch.einsum("abm,bm->ab", wide(cosine.amax(dim=2)), patch_weights)
    with torch.autocast(cosine.device.type, enabled=False):
        patch_sum = torch.einsum("bm,bmd->bd", patch_weights, patches)
        frame_sum = torch.einsum("bt,btd->bd", video.frame_weights[tap], video.frames[tap])
        by_sentence = text.sentence @ patch_sum.T, text.sentence @ frame_sum.T
        return (wide(by_word + by_patch) / 2, *by_sentence)


def loss_terms(state: State, batch: Mapping[str, torch.Tensor], model: Model) -> torch.Tensor:
    """The loss of each of `PAPER_TERMS` [3], summed over taps and both directions.

    `video` uint8 [B, T, H, W, 3], `text_ids` [B, W]; `video_mask` [B, T] and `text_mask` [B, W]
    if there is padding.
    """
    text = text_features(batch["text_ids"], batch.get("text_mask"), state, model)
    video = video_features(batch["video"], batch.get("video_mask"), state, model)
    paired_weights = text.word_weights if model.original else None
    scale = wide(state["clip.logit_scale"]).exp()
    target = torch.arange(len(text.words), device=scale.device)
    losses = [scale.new_zeros(()) for _ in PAPER_TERMS]
    for tap in range(len(model.taps)):
        tables = scores(text, video, tap, paired_weights)
        with torch.autocast(scale.device.type, enabled=False):
            for term, table in enumerate(tables):
                logits = scale * table
                losses[term] += F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    return torch.stack(losses)


def loss(
    state: State,
    batch: Mapping[str, torch.Tensor],
    *,
    config: ClipConfig,
    taps: tuple[int, ...],
    stages: int,
    noise: bool,
) -> torch.Tensor:
    """The loss, summed over terms and taps, of a batch as `loss_terms` takes it."""
    return loss_terms(state, batch, Model(config, taps, stages, noise)).sum()

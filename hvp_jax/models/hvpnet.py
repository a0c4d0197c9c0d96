"""HVP-Net whole: CLIP with taps, distillation, token weights, scores.

The only file that sees a config and makes modules.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hvp_jax.models import similarity
from hvp_jax.models.clip import CLIP
from hvp_jax.models.clip_config import VARIANTS, ClipConfig
from hvp_jax.models.distillation import TokenDistillation
from hvp_jax.models.similarity import TextFeatures, VideoFeatures

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_pixels(video: jax.Array, mask: jax.Array) -> jax.Array:
    """Frames [B, T, H, W, 3], uint8 or already normalised -> float, 0 where padded."""
    if video.dtype == jnp.uint8:
        mean, std = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
        video = (video.astype(jnp.float32) / 255 - mean) / std
    return jnp.where(mask[:, :, None, None, None], video, 0)


class TokenWeight(nn.Module):
    """The small network that weighs tokens, D -> 2D -> D -> 1 (paper section 3.3)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features that are not normalised [..., D] -> raw weights [...]."""
        shape, width = x.shape[:-1], x.shape[-1]
        x = x.astype(self.dtype).reshape(-1, width)
        x = nn.relu(nn.Dense(2 * width, dtype=self.dtype, name="dense_0")(x))
        x = nn.relu(nn.Dense(width, dtype=self.dtype, name="dense_1")(x))
        return nn.Dense(1, name="dense_2")(x).reshape(shape)


class HVPNet(nn.Module):
    clip_config: ClipConfig
    taps: tuple[int, ...]  # layers of the vision tower, counted from 1
    stages: int = 3
    normalize: str = "softmax"
    mask_padding: bool = True
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    freeze_patches: bool = True

    def setup(self):
        self.clip = CLIP(self.clip_config, self.taps, self.remat, self.dtype, self.freeze_patches)
        self.distill = TokenDistillation(self.stages, self.dtype, self.remat == "full")
        self.word_weight = TokenWeight(self.dtype)
        self.patch_weight = TokenWeight(self.dtype)
        self.frame_weight = TokenWeight(self.dtype)

    def encode_text(self, ids: jax.Array, mask: jax.Array) -> TextFeatures:
        """Token ids and validity [A, W] -> words and sentence, normalised and weighed."""
        mask = mask.astype(bool)
        words, sentence = self.clip.text(ids, mask)
        self.sow("intermediates", "words", words)
        self.sow("intermediates", "sentence", sentence)
        valid = mask if self.mask_padding else jnp.ones_like(mask)
        raw = self.word_weight(words)
        self.sow("intermediates", "word_weights", raw)
        return TextFeatures(
            similarity.pad_with_first_token(similarity.l2_normalize(words), valid),
            similarity.normalize_token_weights(raw, valid, self.normalize),
            similarity.l2_normalize(sentence),
        )

    def encode_video(
        self, video: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> VideoFeatures:
        """Frames [B, T, H, W, 3] and validity [B, T] -> tokens and frames of every tap.

        uint8 frames are normalised here; float frames must be already. `key` [B]: a
        random key a clip for the clustering's noise; None for none.
        """
        mask = mask.astype(bool)
        batch, frames = mask.shape
        pixels = normalize_pixels(video, mask)
        x = self.clip.visual(pixels.reshape(-1, *pixels.shape[2:]))  # [L, B T, P, D]
        taps, _, tokens, width = x.shape
        frame = x[:, :, 0].reshape(taps, batch, frames, width)
        patch = x.reshape(taps * batch, frames * tokens, width)
        self.sow("intermediates", "frames", frame)
        self.sow("intermediates", "patches", patch.reshape(taps, batch, -1, width))

        valid = mask if self.mask_padding else jnp.ones_like(mask)
        # A clip of no frames only ever pads a batch: one frame keeps its arithmetic finite.
        count = jnp.maximum(valid.sum(axis=1), 1)
        if key is not None:
            key = jax.vmap(lambda tap: jax.vmap(jax.random.fold_in, (0, None))(key, tap))(
                jnp.arange(taps)
            ).reshape(-1)
        patch, patch_count = self.distill(patch, jnp.tile(count * tokens, taps), key)
        patch = patch.reshape(taps, batch, -1, width)
        patch_valid = jnp.arange(patch.shape[2]) < patch_count.reshape(taps, batch, 1)
        frame_valid = jnp.arange(frames) < count[:, None]

        raw_patch, raw_frame = self.patch_weight(patch), self.frame_weight(frame)
        self.sow("intermediates", "distilled", patch)
        self.sow("intermediates", "patch_weights", raw_patch)
        self.sow("intermediates", "frame_weights", raw_frame)
        patch_weights = similarity.normalize_token_weights(raw_patch, patch_valid, self.normalize)
        frame_weights = similarity.normalize_token_weights(raw_frame, frame_valid, self.normalize)
        patch, frame = similarity.l2_normalize(patch), similarity.l2_normalize(frame)
        highest = jax.lax.Precision.HIGHEST
        return VideoFeatures(
            similarity.pad_with_first_token(patch, patch_valid).swapaxes(0, 1),
            patch_weights.swapaxes(0, 1),
            jnp.einsum("lbm,lbmd->bld", patch_weights, patch, precision=highest),
            jnp.einsum("lbt,lbtd->bld", frame_weights, frame, precision=highest),
        )

    def __call__(
        self,
        text_ids: jax.Array,
        text_mask: jax.Array,
        video: jax.Array,
        video_mask: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[TextFeatures, VideoFeatures, jax.Array]:
        """Both sides of a batch and the logarithm of the temperature."""
        text = self.encode_text(text_ids, text_mask)
        return text, self.encode_video(video, video_mask, key), self.clip.logit_scale


def from_config(config, sizes: ClipConfig | None = None) -> HVPNet:
    """The model that a resolved config describes; `sizes` where its weights tell them."""
    return HVPNet(
        sizes or VARIANTS[config.model.variant],
        tuple(config.model.taps),
        config.distill.stages,
        config.similarity.normalize,
        config.similarity.mask_padding,
        config.model.remat,
        jnp.dtype(config.precision),
        config.model.freeze_patches,
    )


def init_params(model: HVPNet, seed: int, frames: int = 1, words: int = 4) -> dict:
    """Random weights, from the seed alone."""
    side = model.clip_config.image_size
    return model.init(
        jax.random.key(seed),
        jnp.zeros((1, words), jnp.int32),
        jnp.ones((1, words), bool),
        jnp.zeros((1, frames, side, side, 3), jnp.uint8),
        jnp.ones((1, frames), bool),
    )["params"]


def shapes_of(sizes: ClipConfig, stages: int) -> dict:
    """The parameters' tree with shapes for arrays; the taps add none."""
    model = HVPNet(sizes, (sizes.vision_layers,), stages)
    return jax.eval_shape(lambda: init_params(model, 0))

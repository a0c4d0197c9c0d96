"""The complete HVP-Net: CLIP with taps, distillation and token weights.

The only file of this folder that reads a config.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from hvp_jax.models import similarity
from hvp_jax.models.clip import CLIP
from hvp_jax.models.clip_config import VARIANTS, ClipConfig, fits_fused_tower
from hvp_jax.models.clustering import ACCELERATOR_GROUP
from hvp_jax.models.distillation import TokenDistillation
from hvp_jax.models.similarity import TextFeatures, VideoFeatures

# The axes of width and channels may be one: an array in a TPU's memory whose last axis has 3
# elements takes 42 times its size.
Frames = (
    UInt8[Array, "b t height width 3"]
    | UInt8[Array, "b t height columns"]
    | Float[Array, "b t height width 3"]
    | Float[Array, "b t height columns"]
)
WordMask = Bool[Array, "b w"] | Int[Array, "b w"]
FrameMask = Bool[Array, "b t"] | Int[Array, "b t"]


class TokenWeight(nn.Module):
    """The small network that weights tokens, d -> 2d -> d -> 1 (paper section 3.3)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*shape d"]) -> Float[Array, "*shape"]:
        """Features before L2 normalisation -> raw weights."""
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
    dtype: DTypeLike = jnp.float32
    freeze_patches: bool = True
    group: int | None = None  # of `clustering.map_groups`
    fused: bool = False  # with kernels for TPUs, `hvp_jax/models/kernels/`

    def setup(self) -> None:
        self.clip = CLIP(
            config=self.clip_config,
            taps=self.taps,
            remat=self.remat,
            dtype=self.dtype,
            freeze_patches=self.freeze_patches,
            fused=self.fused,
        )
        self.distill = TokenDistillation(
            stages=self.stages,
            dtype=self.dtype,
            remat=self.remat == "full",
            group=self.group,
            fused=self.fused,
        )
        self.word_weight = TokenWeight(dtype=self.dtype)
        self.patch_weight = TokenWeight(dtype=self.dtype)
        self.frame_weight = TokenWeight(dtype=self.dtype)

    def encode_text(self, ids: Int[Array, "b w"], mask: WordMask) -> TextFeatures:
        """Token ids and padding mask -> normalised features and word weights."""
        mask = mask.astype(bool)
        words, sentence = self.clip.text(ids, mask)
        self.sow("intermediates", "words", words)
        self.sow("intermediates", "sentence", sentence)
        valid = mask if self.mask_padding else jnp.ones_like(mask)
        raw = self.word_weight(words)
        self.sow("intermediates", "word_weights", raw)
        return TextFeatures(
            words=similarity.pad_with_first_token(similarity.l2_normalize(words), valid),
            word_weights=similarity.normalize_token_weights(raw, valid, self.normalize),
            sentence=similarity.l2_normalize(sentence),
        )

    def encode_video(
        self, video: Frames, mask: FrameMask, key: Key[Array, " b"] | None = None
    ) -> VideoFeatures:
        """Frames and padding mask -> features and weights at every tap.

        uint8 frames are normalised here; float frames must be normalised already. `key`: a
        random key for each clip, for the clustering's noise; None: no noise.
        """
        mask = mask.astype(bool)
        batch, frames = mask.shape
        pixels = video.reshape(batch * frames, video.shape[2], -1)
        x = self.clip.visual(pixels, mask.reshape(-1))  # [L, B T, P, D]
        taps, _, tokens, dim = x.shape
        frame = x[:, :, 0].reshape(taps, batch, frames, dim)
        patch = x.reshape(taps * batch, frames * tokens, dim)
        self.sow("intermediates", "frames", frame)
        self.sow("intermediates", "patches", patch.reshape(taps, batch, -1, dim))

        valid = mask if self.mask_padding else jnp.ones_like(mask)
        # Only a clip that pads a batch has no frames: counting one keeps its features finite.
        count = jnp.maximum(valid.sum(axis=1), 1)
        if key is not None:
            fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
            key = fold_in(key, jnp.arange(taps)).reshape(-1)
        patch, patch_count = self.distill(patch, jnp.tile(count * tokens, taps), key)
        patch = patch.reshape(taps, batch, -1, dim)
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
            patches=similarity.pad_with_first_token(patch, patch_valid).swapaxes(0, 1),
            patch_weights=patch_weights.swapaxes(0, 1),
            patch_sum=jnp.einsum("lbm,lbmd->bld", patch_weights, patch, precision=highest),
            frame_sum=jnp.einsum("lbt,lbtd->bld", frame_weights, frame, precision=highest),
        )

    def __call__(
        self,
        text_ids: Int[Array, "b w"],
        text_mask: WordMask,
        video: Frames,
        video_mask: FrameMask,
        *,
        key: Key[Array, " b"] | None = None,
    ) -> tuple[TextFeatures, VideoFeatures, Float[Array, ""]]:
        """Text and video features of a batch, and CLIP's `logit_scale`."""
        text = self.encode_text(text_ids, text_mask)
        return text, self.encode_video(video, video_mask, key), self.clip.logit_scale


def from_config(
    config: Any, clip_config: ClipConfig | None = None, platform: str | None = None
) -> HVPNet:
    """The model of a resolved ConfigDict; `clip_config` is that of its weights, if it has any.

    `platform`: what it is compiled for, "tpu", "gpu" or "cpu"; None: JAX's default.
    """
    # Any: this layer does not import ml_collections.
    clip_config = clip_config or VARIANTS[config.model.variant]
    platform = platform or jax.default_backend()
    use_fused = config.model.fused
    if use_fused is None:
        use_fused = (
            platform == "tpu" and config.precision == "bfloat16" and fits_fused_tower(clip_config)
        )
    return HVPNet(
        clip_config,
        tuple(config.model.taps),
        stages=config.distillation.stages,
        normalize=config.similarity.normalize,
        mask_padding=config.similarity.mask_padding,
        remat=config.model.remat,
        dtype=jnp.dtype(config.precision),
        freeze_patches=config.model.freeze_patches,
        group=None if platform == "cpu" else ACCELERATOR_GROUP,
        fused=use_fused,
    )


def init_params(model: HVPNet, seed: int, frames: int = 1, words: int = 4) -> dict:
    """Random weights; they depend only on the model and the seed."""
    side = model.clip_config.image_size
    return model.init(
        jax.random.key(seed),
        jnp.zeros((1, words), jnp.int32),
        jnp.ones((1, words), bool),
        jnp.zeros((1, frames, side, side, 3), jnp.uint8),
        jnp.ones((1, frames), bool),
    )["params"]


def shapes_of(clip_config: ClipConfig, stages: int) -> dict:
    """The tree of parameters as shapes; the taps have no parameters of their own."""
    model = HVPNet(clip_config, (clip_config.vision_layers,), stages=stages)
    return jax.eval_shape(lambda: init_params(model, 0))

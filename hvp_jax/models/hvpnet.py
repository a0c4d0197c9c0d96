"""The complete HVP-Net: CLIP with taps, distillation and token weights.

This file and `model_spec.py` are the only ones of this folder that read a config.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from hvp_jax.models import score_weights, similarity
from hvp_jax.models.clip import CLIP
from hvp_jax.models.clip_config import PAPER_TERMS, VARIANTS, ClipConfig, fits_fused_tower
from hvp_jax.models.distillation.clustering import ACCELERATOR_GROUP
from hvp_jax.models.distillation.stage import TokenDistillation
from hvp_jax.models.frame_aggregation import FrameAggregation
from hvp_jax.models.layers import FrameMask, Frames, TokenWeight, WordMask
from hvp_jax.models.model_spec import HeadConfig, head_from_config, head_of, learning_layers
from hvp_jax.models.similarity import TextFeatures, VideoFeatures

HIGHEST = jax.lax.Precision.HIGHEST


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
    learning_layers: int | None = None  # of each tower, the last ones; None: all, 0: CLIP is frozen
    # The rest of the head; `HeadConfig` says what each is.
    terms: tuple[str, ...] = PAPER_TERMS
    tap_weights: str = "uniform"
    token_weights: str = "learned"
    method: str = "dpc_knn"
    attention: bool = True
    conv: bool = True
    aggregation: str = "none"

    def setup(self) -> None:
        head = head_of(self)
        modules = head.modules()
        self.clip = CLIP(
            config=self.clip_config,
            taps=self.taps,
            remat=self.remat,
            dtype=self.dtype,
            freeze_patches=self.freeze_patches,
            fused=self.fused,
            patches=head.uses_patches,
            words=head.uses_words,
            learning_layers=self.learning_layers,
        )
        # A part that no chosen term needs has no parameters.
        if "distill" in modules:
            self.distill = TokenDistillation(
                stages=self.stages,
                dtype=self.dtype,
                remat=self.remat == "full",
                group=self.group,
                fused=self.fused,
                method=self.method,
                attention=self.attention,
                conv=self.conv,
            )
        for name in modules & {"word_weight", "patch_weight", "frame_weight"}:
            setattr(self, name, TokenWeight(dtype=self.dtype))
        if "frame_aggregation" in modules:
            self.frame_aggregation = FrameAggregation(
                kind=self.aggregation,
                config=self.clip_config,
                remat=self.remat,
                dtype=self.dtype,
            )
        if "tap_weights" in modules:
            shape = len(self.terms), len(self.taps)
            self.raw_tap_weights = self.param("tap_weights", nn.initializers.zeros, shape)

    def _token_weights(
        self, tokens: str, x: Float[Array, "*shape n d"], valid: Bool[Array, "... n"]
    ) -> Float[Array, "*shape n"]:
        """The weights of "word", "patch" or "frame" tokens, 0 for padding."""
        if self.token_weights == "uniform":
            wide = jnp.promote_types(x.dtype, jnp.float32)
            return score_weights.uniform_token_weights(jnp.broadcast_to(valid, x.shape[:-1]), wide)
        raw = getattr(self, f"{tokens}_weight")(x)
        self.sow("intermediates", f"{tokens}_weights", raw)
        return score_weights.normalize_token_weights(raw, valid, self.normalize)

    def encode_text(self, ids: Int[Array, "b w"], mask: WordMask) -> TextFeatures:
        """Token ids and padding mask -> normalised features and word weights."""
        head = head_of(self)
        mask = mask.astype(bool)
        words, sentence = self.clip.text(ids, mask)
        self.sow("intermediates", "sentence", sentence)
        unit = similarity.l2_normalize(sentence) if head.uses_sentence else None
        if words is None:
            return TextFeatures(None, None, unit)
        self.sow("intermediates", "words", words)
        valid = mask if self.mask_padding else jnp.ones_like(mask)
        return TextFeatures(
            words=similarity.pad_with_first_token(similarity.l2_normalize(words), valid),
            word_weights=self._token_weights("word", words, valid),
            sentence=unit,
        )

    def encode_video(
        self, video: Frames, mask: FrameMask, key: Key[Array, " b"] | None = None
    ) -> VideoFeatures:
        """Frames and padding mask -> features and weights at every tap.

        uint8 frames are normalised here; float frames must be normalised already. `key`: a
        random key for each clip, for the clustering's noise; None: no noise.
        """
        head = head_of(self)
        mask = mask.astype(bool)
        batch, frames = mask.shape
        pixels = video.reshape(batch * frames, video.shape[2], -1)
        x = self.clip.visual(pixels, mask.reshape(-1))  # [L, B T, P, D]
        valid = mask if self.mask_padding else jnp.ones_like(mask)
        # Only a clip that pads a batch has no frames: counting one keeps its features finite.
        count = jnp.maximum(valid.sum(axis=1), 1)
        features: dict[str, Array] = {}
        if head.uses_frames:
            frame = x[:, :, 0].reshape(len(x), batch, frames, -1)
            features |= self._frame_features(frame, jnp.arange(frames) < count[:, None])
        if head.uses_patches:
            features |= self._patch_features(x.reshape(len(x), batch, -1, x.shape[3]), count, key)
        if self.tap_weights == "learned":
            weights = score_weights.normalize_tap_weights(self.raw_tap_weights)
            features["tap_weights"] = jnp.broadcast_to(weights, (batch, *weights.shape))
        return VideoFeatures(**features)

    def _frame_features(
        self, frame: Float[Array, "l b t d"], valid: Bool[Array, "b t"]
    ) -> dict[str, Array]:
        self.sow("intermediates", "frames", frame)
        if self.aggregation != "none":
            stacked = frame.reshape(-1, *frame.shape[2:])  # the taps on the batch axis
            stacked = self.frame_aggregation(stacked, jnp.tile(valid, (len(frame), 1)))
            frame = stacked.reshape(frame.shape)
        features, unit = {}, similarity.l2_normalize(frame)
        if "sentence_frame" in self.terms:
            weights = self._token_weights("frame", frame, valid)
            features["frame_sum"] = jnp.einsum("lbt,lbtd->bld", weights, unit, precision=HIGHEST)
        if "sentence_clip" in self.terms:
            features["clip_feature"] = similarity.mean_clip_feature(unit, valid)
        return features

    def _patch_features(
        self, patch: Float[Array, "l b n d"], count: Int[Array, " b"], key: Array | None
    ) -> dict[str, Array]:
        """`count`: frames of a clip; `key`: as in `encode_video`."""
        taps, batch, _, dim = patch.shape
        self.sow("intermediates", "patches", patch)
        side = self.clip_config.image_size // self.clip_config.patch_size
        patch_count = jnp.tile(count * (side * side + 1), taps)
        if self.stages:
            if key is not None:
                fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
                key = fold_in(key, jnp.arange(taps)).reshape(-1)
            stacked = patch.reshape(taps * batch, -1, dim)
            stacked, patch_count = self.distill(stacked, patch_count, key)
            patch = stacked.reshape(taps, batch, -1, dim)
        valid = jnp.arange(patch.shape[2]) < patch_count.reshape(taps, batch, 1)
        self.sow("intermediates", "distilled", patch)
        weights = self._token_weights("patch", patch, valid)
        patch = similarity.l2_normalize(patch)
        features = {}
        if "word_patch" in self.terms:
            padded = similarity.pad_with_first_token(patch, valid)
            features["patches"] = padded.swapaxes(0, 1)
            features["patch_weights"] = weights.swapaxes(0, 1)
        if "sentence_patch" in self.terms:
            features["patch_sum"] = jnp.einsum("lbm,lbmd->bld", weights, patch, precision=HIGHEST)
        return features

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
        on_tpu = platform == "tpu" and config.precision == "bfloat16"
        use_fused = on_tpu and fits_fused_tower(clip_config)
    return HVPNet(
        clip_config,
        tuple(config.model.taps),
        normalize=config.similarity.normalize,
        mask_padding=config.similarity.mask_padding,
        remat=config.model.remat,
        dtype=jnp.dtype(config.precision),
        freeze_patches=config.model.freeze_patches,
        group=None if platform == "cpu" else ACCELERATOR_GROUP,
        fused=use_fused,
        learning_layers=learning_layers(config),
        **vars(head_from_config(config)),
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


def param_shapes(model: HVPNet) -> dict:
    """The tree of a model's parameters as shapes."""
    return jax.eval_shape(lambda: init_params(model, 0))


def shapes_of(
    clip_config: ClipConfig, head: HeadConfig, taps: tuple[int, ...] | None = None
) -> dict:
    """The tree of parameters as shapes; only learned weights of the taps depend on the taps."""
    return param_shapes(HVPNet(clip_config, taps or (clip_config.vision_layers,), **vars(head)))

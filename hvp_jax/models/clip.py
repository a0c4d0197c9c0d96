"""OpenAI CLIP's two towers, with taps at chosen layers of the vision tower.

Paper section 3.1; Radford et al., arXiv 2103.00020.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.layers import Pixels, by_row, embed_patches, layer_norm
from hvp_jax.models.tower.tower import Tower


class VisionTransformer(nn.Module):
    image_size: int
    patch_size: int
    width: int
    layers: int
    embed_dim: int
    taps: tuple[int, ...]
    activation: str = "quick_gelu"
    head_dim: int = 64
    mlp_dim: int | None = None
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    freeze_patches: bool = True  # False without pretrained weights
    fused: bool = False
    patches: bool = True  # False: only the class token is returned
    learning_layers: int | None = None  # as in `Tower`

    @nn.compact
    def __call__(self, pixels: Pixels, valid: Bool[Array, " n"]) -> Float[Array, "l n p d"]:
        """Frames, as `embed_patches` takes them -> all tokens at every tap, the class token first.

        `ln_post` and the projection are applied to all tokens at each tap (paper section
        3.1), or without `patches` to the class token alone.
        """
        side, patch = self.image_size // self.patch_size, self.patch_size
        scale = self.width**-0.5
        normal = nn.initializers.normal(scale)
        kernel = self.param("patch_embedding", normal, (patch * patch * 3, self.width))
        class_token = self.param("class_embedding", normal, (self.width,))
        position = self.param("position_embedding", normal, (side * side + 1, self.width))
        projection = self.param("projection", normal, (self.width, self.embed_dim))

        # A convolution whose stride equals its kernel size is a matrix product over patches.
        kernel = jax.lax.stop_gradient(kernel) if self.freeze_patches else kernel
        x = embed_patches(pixels, kernel, valid, self.dtype)  # [N, P-1, width]
        first = jnp.broadcast_to(class_token.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([first, x], axis=1) + position.astype(x.dtype)
        x = layer_norm("norm_pre")(x).astype(self.dtype)
        x = Tower(
            width=self.width,
            head_dim=self.head_dim,
            mlp_dim=self.mlp_dim,
            layers=self.layers,
            taps=self.taps,
            activation=self.activation,
            remat=self.remat,
            dtype=self.dtype,
            fused=self.fused,
            learning_layers=self.learning_layers,
            name="tower",
        )(x)
        x = x if self.patches else x[:, :, :1]
        shape = x.shape[:-1]  # l n p
        x = x.reshape(shape[0], -1, self.width)  # frames of 50 tokens would be padded on a TPU
        x = layer_norm("norm_post")(x).astype(self.dtype)
        x = by_row(lambda rows: rows @ projection.astype(self.dtype), x)
        return x.reshape(*shape, self.embed_dim)


class TextTransformer(nn.Module):
    context_length: int
    vocab_size: int
    width: int
    layers: int
    embed_dim: int
    activation: str = "quick_gelu"
    head_dim: int = 64
    mlp_dim: int | None = None
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    words: bool = True  # False: only the sentence is returned
    learning_layers: int | None = None  # as in `Tower`

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b w"], mask: Bool[Array, "b w"]
    ) -> tuple[Float[Array, "b w d"] | None, Float[Array, "b d"]]:
        """Token ids and padding mask -> features of the words and of the sentence.

        The sentence is the word with the greatest token id, which is end-of-text.
        """
        normal = nn.initializers.normal
        tokens = self.param("token_embedding", normal(0.02), (self.vocab_size, self.width))
        position = self.param("position_embedding", normal(0.01), (self.context_length, self.width))
        projection = self.param(
            "projection", normal(self.width**-0.5), (self.width, self.embed_dim)
        )

        length = ids.shape[1]
        x = (tokens[ids] + position[:length]).astype(self.dtype)  # [B, W, width]
        causal = jnp.tril(jnp.ones((length, length), bool))
        # The first word is never masked, so that the softmax of an empty caption is not 0/0.
        valid = mask.astype(bool).at[:, 0].set(True)
        attend = causal[None, None] & valid[:, None, None, :]  # [B, 1, W, W]
        bias = jnp.where(attend, 0.0, -jnp.inf)
        x = Tower(
            width=self.width,
            head_dim=self.head_dim,
            mlp_dim=self.mlp_dim,
            layers=self.layers,
            taps=(self.layers,),
            activation=self.activation,
            remat=self.remat,
            dtype=self.dtype,
            learning_layers=self.learning_layers,
            name="tower",
        )(x, bias)[0]
        end = jnp.argmax(ids, axis=1)[:, None, None]
        if not self.words:
            x = jnp.take_along_axis(x, end, axis=1)
        x = layer_norm("norm_final")(x).astype(self.dtype)
        words = x @ projection.astype(self.dtype)
        if not self.words:
            return None, words[:, 0]
        return words, jnp.take_along_axis(words, end, axis=1)[:, 0]


class CLIP(nn.Module):
    """CLIP's two towers and its temperature: all weights of a pretrained CLIP checkpoint."""

    config: ClipConfig
    taps: tuple[int, ...]
    remat: str
    dtype: DTypeLike
    freeze_patches: bool
    fused: bool = False
    patches: bool = True  # False: of the vision tower only the class token
    words: bool = True  # False: of the text tower only the sentence
    learning_layers: int | None = None  # of each tower, as in `Tower`

    def setup(self) -> None:
        config = self.config
        self.visual = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.vision_width,
            layers=config.vision_layers,
            embed_dim=config.embed_dim,
            taps=self.taps,
            activation=config.activation,
            head_dim=config.vision_head_dim,
            mlp_dim=config.vision_mlp_dim,
            remat=self.remat,
            dtype=self.dtype,
            freeze_patches=self.freeze_patches,
            fused=self.fused,
            patches=self.patches,
            learning_layers=self.learning_layers,
        )
        self.text = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.text_width,
            layers=config.text_layers,
            embed_dim=config.embed_dim,
            activation=config.activation,
            head_dim=config.text_head_dim,
            mlp_dim=config.text_mlp_dim,
            remat=self.remat,
            dtype=self.dtype,
            words=self.words,
            learning_layers=self.learning_layers,
        )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

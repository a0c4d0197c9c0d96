"""OpenAI CLIP's two towers, with taps at chosen layers of the vision tower.

Paper section 3.1; Radford et al., arXiv 2103.00020. Blocks are pre-norm. The weights of a
tower's blocks are stacked and `nn.scan` loops over them: one block is compiled instead of
twelve, and rematerialisation is a policy for one block.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.layers import ACTIVATIONS, attention, by_row, layer_norm

# What a block saves for the gradient: everything, its matrix products, or only its input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """One residual block. The carry is (x, taps); see `Tower`."""

    width: int
    head_dim: int
    mlp_dim: int
    layers: int  # of the tower, for the initial scale
    activation: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "b n width"], Float[Array, "slots b n width"]],
        slot: Int[Array, ""],
        bias: Float[Array, "#b 1 #n n"] | None,
    ) -> tuple[tuple[Float[Array, "b n width"], Float[Array, "slots b n width"]], None]:
        x, taps = carry
        out_scale = self.width**-0.5 * (2 * self.layers) ** -0.5

        def dense(features, std, name, x):
            init = nn.initializers.normal(std)
            return by_row(nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name), x)

        heads = (*x.shape[:2], self.width // self.head_dim, self.head_dim)
        y = layer_norm("norm_1")(x).astype(self.dtype)
        qkv = dense(3 * self.width, self.width**-0.5, "qkv", y)
        query, key, value = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        y = attention(query, key, value, bias).reshape(x.shape)
        x = x + dense(self.width, out_scale, "attention_out", y)

        y = layer_norm("norm_2")(x).astype(self.dtype)
        y = dense(self.mlp_dim, (2 * self.width) ** -0.5, "mlp_in", y)
        x = x + dense(self.width, out_scale, "mlp_out", ACTIVATIONS[self.activation](y))
        self.sow("intermediates", "hidden", x)
        return (x, taps.at[slot].set(x)), None


class Tower(nn.Module):
    """A stack of blocks that returns the hidden states of the tapped layers.

    The scan carries one slot for each tap and a spare slot that all other layers write to.
    Memory therefore grows with the number of taps, not with the number of layers.
    """

    width: int
    head_dim: int
    mlp_dim: int | None  # None: four times the width
    layers: int
    taps: tuple[int, ...]  # layers counted from 1, increasing
    activation: str
    remat: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], bias: Float[Array, "#b 1 #n n"] | None = None
    ) -> Float[Array, "l b n width"]:
        """Hidden states at the taps; `bias` as in `attention`."""
        slots = np.full(self.layers, len(self.taps), np.int32)
        slots[np.array(self.taps) - 1] = np.arange(len(self.taps))
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.layers,
        )(
            width=self.width,
            head_dim=self.head_dim,
            mlp_dim=self.mlp_dim or 4 * self.width,
            layers=self.layers,
            activation=self.activation,
            dtype=self.dtype,
            name="blocks",
        )
        taps = jnp.zeros((len(self.taps) + 1, *x.shape), x.dtype)
        (_, taps), _ = blocks((x, taps), jnp.asarray(slots), bias)
        return taps[:-1]


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

    @nn.compact
    def __call__(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "l b p d"]:
        """Normalised frames -> all tokens at every tap, the class token first.

        `ln_post` and the projection are applied to all tokens at each tap (paper section
        3.1).
        """
        side, patch = self.image_size // self.patch_size, self.patch_size
        scale = self.width**-0.5
        normal = nn.initializers.normal(scale)
        kernel = self.param("patch_embedding", normal, (patch * patch * 3, self.width))
        class_token = self.param("class_embedding", normal, (self.width,))
        position = self.param("position_embedding", normal, (side * side + 1, self.width))
        projection = self.param("projection", normal, (self.width, self.embed_dim))

        # A convolution whose stride equals its kernel size is a matrix product over patches.
        x = pixels.astype(self.dtype).reshape(-1, side, patch, side, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, patch * patch * 3)
        kernel = jax.lax.stop_gradient(kernel) if self.freeze_patches else kernel
        x = by_row(lambda rows: rows @ kernel.astype(self.dtype), x)  # [N, P-1, width]
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
            name="tower",
        )(x)
        x = layer_norm("norm_post")(x).astype(self.dtype)
        return by_row(lambda rows: rows @ projection.astype(self.dtype), x)


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

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b w"], mask: Bool[Array, "b w"]
    ) -> tuple[Float[Array, "b w d"], Float[Array, "b d"]]:
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
            name="tower",
        )(x, bias)[0]
        x = layer_norm("norm_final")(x).astype(self.dtype)
        words = x @ projection.astype(self.dtype)
        end = jnp.argmax(ids, axis=1)
        return words, jnp.take_along_axis(words, end[:, None, None], axis=1)[:, 0]


class CLIP(nn.Module):
    """CLIP's two towers and its temperature: all weights of a pretrained CLIP checkpoint."""

    config: ClipConfig
    taps: tuple[int, ...]
    remat: str
    dtype: DTypeLike
    freeze_patches: bool

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
        )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

"""OpenAI CLIP's two towers, with taps at chosen depths of the vision tower.

Paper section 3.1; Radford et al., arXiv 2103.00020. Blocks are pre-norm, and
a tower's blocks are one stacked set of weights that `nn.scan` walks: a twelfth of the code
to compile, and a block's activations are all that rematerialisation has to think about.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.layers import ACTIVATIONS, attention, by_row, layer_norm

# What a block keeps for the gradient: everything, its matrix products, or its input alone.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """One residual block. The carry is (x, taps); see `Tower`."""

    width: int
    head: int  # width of an attention head
    mlp: int  # width between the two layers of the MLP
    layers: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], slot: jax.Array, bias: jax.Array | None
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, taps = carry  # [N, S, width], [taps + 1, N, S, width]
        out_scale = self.width**-0.5 * (2 * self.layers) ** -0.5

        def dense(features, std, name, x):
            init = nn.initializers.normal(std)
            return by_row(nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name), x)

        heads = (*x.shape[:2], self.width // self.head, self.head)
        y = layer_norm("norm_1")(x).astype(self.dtype)
        qkv = dense(3 * self.width, self.width**-0.5, "qkv", y)
        query, key, value = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        y = attention(query, key, value, bias).reshape(x.shape)
        x = x + dense(self.width, out_scale, "attention_out", y)

        y = layer_norm("norm_2")(x).astype(self.dtype)
        y = dense(self.mlp, (2 * self.width) ** -0.5, "mlp_in", y)
        x = x + dense(self.width, out_scale, "mlp_out", ACTIVATIONS[self.activation](y))
        self.sow("intermediates", "hidden", x)
        return (x, taps.at[slot].set(x)), None


class Tower(nn.Module):
    """A stack of blocks that keeps the hidden states of chosen layers.

    The scan carries one slot a tap and a spare one that every other layer writes
    to, so the taps cost no more memory than themselves, at whatever depth.
    """

    width: int
    head: int
    mlp: int | None  # None: four times the width
    layers: int
    taps: tuple[int, ...]  # counted from 1, increasing
    activation: str
    remat: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """[N, S, width] -> [taps, N, S, width]; `bias` as in `attention`."""
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
            self.width,
            self.head,
            self.mlp or 4 * self.width,
            self.layers,
            self.activation,
            self.dtype,
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
    head: int = 64
    mlp: int | None = None
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    freeze_patches: bool = True

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Normalised frames [N, H, W, 3] -> every token at every tap [taps, N, P, D].

        The class token comes first. `ln_post` and the projection are applied to all
        tokens at each tap (paper section 3.1). The patch convolution is frozen, unless it
        has nothing learned to keep.
        """
        side, patch = self.image_size // self.patch_size, self.patch_size
        scale = self.width**-0.5
        normal = nn.initializers.normal(scale)
        kernel = self.param("patch_embedding", normal, (patch * patch * 3, self.width))
        class_token = self.param("class_embedding", normal, (self.width,))
        position = self.param("position_embedding", normal, (side * side + 1, self.width))
        projection = self.param("projection", normal, (self.width, self.embed_dim))

        # A convolution whose stride is its size is one matrix product over cut patches.
        x = pixels.astype(self.dtype).reshape(-1, side, patch, side, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, patch * patch * 3)
        kernel = jax.lax.stop_gradient(kernel) if self.freeze_patches else kernel
        x = by_row(lambda rows: rows @ kernel.astype(self.dtype), x)  # [N, P-1, width]
        first = jnp.broadcast_to(class_token.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([first, x], axis=1) + position.astype(x.dtype)
        x = layer_norm("norm_pre")(x).astype(self.dtype)
        x = Tower(
            self.width,
            self.head,
            self.mlp,
            self.layers,
            self.taps,
            self.activation,
            self.remat,
            self.dtype,
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
    head: int = 64
    mlp: int | None = None
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Token ids and validity [B, W] -> words [B, W, D] and sentence [B, D].

        The sentence is the word at the greatest token id, which is end-of-text.
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
        # The first word is always attended to, so that no row of an empty caption is 0/0.
        valid = mask.astype(bool).at[:, 0].set(True)
        attend = causal[None, None] & valid[:, None, None, :]  # [B, 1, W, W]
        bias = jnp.where(attend, 0.0, -jnp.inf)
        x = Tower(
            self.width,
            self.head,
            self.mlp,
            self.layers,
            (self.layers,),
            self.activation,
            self.remat,
            self.dtype,
            name="tower",
        )(x, bias)[0]
        x = layer_norm("norm_final")(x).astype(self.dtype)
        words = x @ projection.astype(self.dtype)
        end = jnp.argmax(ids, axis=1)
        return words, jnp.take_along_axis(words, end[:, None, None], axis=1)[:, 0]


class CLIP(nn.Module):
    """CLIP's two towers and its temperature: what a pretrained checkpoint fills."""

    config: ClipConfig
    taps: tuple[int, ...]
    remat: str
    dtype: jnp.dtype
    freeze_patches: bool

    def setup(self):
        s = self.config
        common = dict(activation=s.activation, remat=self.remat, dtype=self.dtype)
        self.visual = VisionTransformer(
            s.image_size,
            s.patch_size,
            s.vision_width,
            s.vision_layers,
            s.embed_dim,
            self.taps,
            head=s.vision_head_dim,
            mlp=s.vision_mlp_dim,
            freeze_patches=self.freeze_patches,
            **common,
        )
        self.text = TextTransformer(
            s.context_length,
            s.vocab_size,
            s.text_width,
            s.text_layers,
            s.embed_dim,
            head=s.text_head_dim,
            mlp=s.text_mlp_dim,
            **common,
        )
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

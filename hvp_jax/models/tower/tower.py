"""A stack of residual blocks, which returns the hidden states of chosen layers.

Paper section 3.1; Radford et al., arXiv 2103.00020. Blocks are pre-norm. Their weights are
stacked and `nn.scan` loops over them: one block is compiled instead of twelve, and
rematerialisation is a policy for one block.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

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
    fused: bool = False  # computed by `hvp_jax/models/tower/fused.py`
    learning_layers: int | None = None  # the last so many have a gradient; None: all

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n width"], bias: Float[Array, "#b 1 #n n"] | None = None
    ) -> Float[Array, "l b n width"]:
        """Hidden states at the taps; `bias` as in `attention`."""
        if self._frozen and not self.is_initializing():
            return self._run_partly_frozen(x, bias)
        if self.fused and not self.is_initializing():
            from hvp_jax.models.tower import fused  # Pallas: only if needed

            return fused.run_blocks(
                x,
                self.variables["params"]["blocks"],
                taps=self.taps,
                head_dim=self.head_dim,
                activation=self.activation,
                remat=self.remat,
            )
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

    @property
    def _frozen(self) -> int:
        """The number of layers without a gradient."""
        return 0 if self.learning_layers is None else max(self.layers - self.learning_layers, 0)

    def _run_partly_frozen(
        self, x: Float[Array, "b n width"], bias: Float[Array, "#b 1 #n n"] | None
    ) -> Float[Array, "l b n width"]:
        """Two towers, one behind the other, of which the first has no backward pass."""
        frozen, params = self._frozen, self.variables["params"]["blocks"]

        def run(x, part, taps):
            layers = len(range(self.layers)[part])
            tower = self.clone(
                parent=None, name=None, layers=layers, taps=taps, learning_layers=None
            )
            return tower.apply(
                {"params": {"blocks": jax.tree.map(lambda p: p[part], params)}}, x, bias
            )

        taps = tuple(tap for tap in self.taps if tap <= frozen)
        rest = tuple(tap - frozen for tap in self.taps if tap > frozen)
        first = run(x, slice(0, frozen), tuple(dict.fromkeys((*taps, frozen))))
        first = jax.lax.stop_gradient(first)
        if not rest:
            return first[: len(taps)]
        return jnp.concatenate([first[: len(taps)], run(first[-1], slice(frozen, None), rest)])

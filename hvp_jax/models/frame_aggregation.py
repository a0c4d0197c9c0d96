"""CLIP4Clip's sequential heads, which frames can pass through before they are scored.

Luo et al., arXiv 2104.08860, section 3.3. They are residual, and their last projection starts at
zero: training starts from the frames as they are.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.tower.tower import Tower

LAYERS = 4  # of the transformer, as in CLIP4Clip


class FrameAggregation(nn.Module):
    """Frames' features -> features that have seen the other frames of their clip."""

    kind: str  # transformer, lstm
    config: ClipConfig
    remat: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """The valid frames, which come first, do not depend on the padding."""
        width = x.shape[2]
        head = self._transformer if self.kind == "transformer" else self._lstm
        y = head(x.astype(self.dtype), valid)
        out = nn.Dense(
            width, dtype=self.dtype, kernel_init=nn.initializers.zeros_init(), name="out"
        )
        return x + out(y).astype(x.dtype)

    def _transformer(
        self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]
    ) -> Float[Array, "b t d"]:
        """Heads, activation and number of positions are those of CLIP's text tower."""
        config, width = self.config, x.shape[2]
        normal = nn.initializers.normal(0.01)
        position = self.param("position_embedding", normal, (config.context_length, width))
        x = x + position[: x.shape[1]].astype(x.dtype)
        return Tower(
            width=width,
            head_dim=math.gcd(width, config.text_head_dim),
            mlp_dim=None,
            layers=LAYERS,
            taps=(LAYERS,),
            activation=config.activation,
            remat=self.remat,
            dtype=self.dtype,
            name="tower",
        )(x, jnp.where(valid, 0.0, -jnp.inf)[:, None, None])[0]

    def _lstm(self, x: Float[Array, "b t d"], valid: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        del valid  # a frame sees only those before it, and the padding comes last
        cell = nn.OptimizedLSTMCell(x.shape[2], dtype=self.dtype, name="lstm")
        zeros = jnp.zeros(x.shape[:1] + x.shape[2:], jnp.promote_types(self.dtype, jnp.float32))
        out: Any = nn.RNN(cell)(x, initial_carry=(zeros, zeros))
        return out

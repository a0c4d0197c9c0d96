"""The original's optimiser: BERT's Adam, two rates, warm-up and cosine (paper section 4.1).

`p <- p - rate · (m / (√v + 1e-6) + decay · p)`, without bias correction. Decay falls on
every tensor whose name has no `bias` in it, norms, positions and the temperature
included; the patch convolution of a pretrained CLIP is frozen; the rate inside CLIP is its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

MAX_LOG_SCALE = 4.605170185988092  # ln 100


def warmup_cosine(progress: jax.Array, warmup: float) -> jax.Array:
    """Share of the steps done, before the update -> factor of the rate."""
    rising = progress / warmup if warmup > 0 else jnp.zeros_like(progress)
    return jnp.where(progress < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * progress)))


def clip_by_known_norm(most: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates so that their global norm is at most `most`.

    `norm` is the norm where it is known already: of updates that lie in parts on several
    devices, only the step can tell it.
    """

    def update(updates, state, params=None, *, norm=None, **more):
        del params, more
        norm = optax.tree.norm(updates) if norm is None else norm
        keep = norm < most
        return jax.tree.map(lambda u: jnp.where(keep, u, u / norm * most), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class BertAdamState(NamedTuple):
    mu: optax.Updates
    nu: optax.Updates


def scale_by_bert_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam without bias correction; moments in float32 or better whatever the weights are."""

    def zeros(params):
        return jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
        )

    def update(grads, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g.astype(m.dtype), state.mu, grads)
        nu = jax.tree.map(
            lambda v, g: b2 * v + (1 - b2) * jnp.square(g.astype(v.dtype)), state.nu, grads
        )
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, BertAdamState(mu, nu)

    return optax.GradientTransformation(lambda p: BertAdamState(zeros(p), zeros(p)), update)


def _path(keys) -> str:
    return "/".join(key.key for key in keys)


def param_group(path: str) -> str:
    """Which rate a parameter has: "patches", "clip" or "new"."""
    if path == "clip/visual/patch_embedding":
        return "patches"
    return "clip" if path.startswith("clip/") else "new"


def weight_decay_mask(params: optax.Params) -> optax.Params:
    """True for every tensor that weight decay falls on."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: not _path(keys).endswith("bias"), params
    )


def scale_by_group(rates: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies each update by minus the rate of its group."""

    def update(updates, state, params=None):
        del params
        return jax.tree_util.tree_map_with_path(
            lambda keys, u: -rates[param_group(_path(keys))] * u, updates
        ), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
    rate: float,
    clip_rate: float,
    schedule_steps: int,
    warmup: float = 0.1,
    weight_decay: float = 0.2,
    max_grad_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.98,
    epsilon: float = 1e-6,
    freeze_patches: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Clip to the global norm, Adam, decay, rates, schedule: as an optax transformation."""
    rates = {"patches": 0.0 if freeze_patches else clip_rate, "clip": clip_rate, "new": rate}

    def factor(step: jax.Array) -> jax.Array:
        return warmup_cosine(step / schedule_steps, warmup)

    return optax.chain(
        clip_by_known_norm(max_grad_norm),
        scale_by_bert_adam(b1, b2, epsilon),
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
        scale_by_group(rates),
        optax.scale_by_schedule(factor),
    )


def apply_updates_and_clamp(params: optax.Params, updates: optax.Updates) -> optax.Params:
    """Adds the updates and clamps the temperature's logarithm at ln 100."""
    params = optax.apply_updates(params, updates)
    scale = jnp.minimum(params["clip"]["logit_scale"], MAX_LOG_SCALE)
    return {**params, "clip": {**params["clip"], "logit_scale": scale}}

"""The original's optimiser: BERT's Adam, two learning rates, warm-up and cosine (section 4.1).

`p <- p - learning_rate · (m / (√v + 1e-6) + decay · p)`, without bias correction. Weight decay
applies to every tensor without `bias` in its name: norms, positions and the temperature
too. CLIP has its own learning rate; the patch convolution of a pretrained CLIP is frozen.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

MAX_LOG_SCALE = 4.605170185988092  # ln 100
CLIP_EPSILON = 1e-6  # added to the norm by torch.nn.utils.clip_grad_norm_


class Optimizer(NamedTuple):
    """An optax transformation, and the factor that its schedule gives to the learning rates.

    `update` takes the global norm of the gradients as `norm`, and `finite`: if it is false, the
    state does not change, and the updates are not to be used.
    """

    init: Callable[[optax.Params], optax.OptState]
    update: Callable[..., tuple[optax.Updates, optax.OptState]]
    lr_factor: Callable[[optax.OptState], Any]  # [] of the update that follows a state


def warmup_steps(schedule_steps: int, warmup_fraction: float) -> int:
    """The number of updates that are warm-up: those with step / schedule_steps < warmup_fraction.

    Computed in Python's float64, as in the original. A compiled comparison of floats would decide
    otherwise for one update in a fifth of all lengths: XLA multiplies by 1 / schedule_steps.
    """
    least = max(0, int(warmup_fraction * schedule_steps) - 1)
    steps = next(i for i in itertools.count(least) if i / schedule_steps >= warmup_fraction)
    return min(steps, 2**31 - 1)  # steps are counted in int32


def warmup_cosine(
    step: Int[Array | np.ndarray, "..."], schedule_steps: int, warmup_fraction: float
) -> Float[Array, "..."]:
    """Number of updates done -> factor of the learning rate of the next one (section 4.1).

    With x = step / schedule_steps it is x / warmup_fraction during the warm-up, then
    (1 + cos(pi x)) / 2. It is float64 if JAX has float64 enabled, otherwise float32.
    """
    steps = jnp.asarray(step).astype(float)
    rising = steps / (schedule_steps * warmup_fraction or 1)
    # The same as (1 + cos(pi x)) / 2, without its cancellation near the end of the schedule.
    falling = jnp.square(jnp.sin(jnp.pi / 2 * (schedule_steps - steps) / schedule_steps))
    return jnp.where(step < warmup_steps(schedule_steps, warmup_fraction), rising, falling)


def clip_by_known_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates so that their global norm is at most `max_norm`, as PyTorch does.

    `update` takes the global norm as `norm`. If a device holds only a shard of the updates, the
    step has to compute it. Without `norm`, it is that of `updates`.
    """

    def update(updates, state, params=None, *, norm=None, **extra_args):
        del params, extra_args
        norm = optax.tree.norm(updates) if norm is None else norm
        scale = jnp.minimum(max_norm / (norm + CLIP_EPSILON), 1)
        return jax.tree.map(lambda u: u * scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class BertAdamState(NamedTuple):
    mu: optax.Updates
    nu: optax.Updates


def scale_by_bert_adam(
    b1: float, b2: float, epsilon: float
) -> optax.GradientTransformationExtraArgs:
    """Adam without bias correction; moments are at least float32, whatever the weights are.

    `update` takes `finite`, a scalar: if it is false the moments do not change. The choice is made
    here, before the moments are used: made afterwards, XLA copies all old moments on a CPU.
    """

    def zeros(params):
        return jax.tree.map(
            lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params
        )

    def update(grads, state, params=None, *, finite=True, **extra_args):
        del params, extra_args

        def first_moment(m, g):
            return jnp.where(finite, b1 * m + (1 - b1) * g.astype(m.dtype), m)

        def second_moment(v, g):
            return jnp.where(finite, b2 * v + (1 - b2) * jnp.square(g.astype(v.dtype)), v)

        mu = jax.tree.map(first_moment, state.mu, grads)
        nu = jax.tree.map(second_moment, state.nu, grads)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, BertAdamState(mu, nu)

    return optax.GradientTransformationExtraArgs(
        lambda p: BertAdamState(zeros(p), zeros(p)), update
    )


def _path(keys) -> str:
    return "/".join(key.key for key in keys)


def param_group(path: str) -> str:
    """The group that sets a parameter's learning rate: "patches", "clip" or "new"."""
    if path == "clip/visual/patch_embedding":
        return "patches"
    return "clip" if path.startswith("clip/") else "new"


def param_groups(params: optax.Params) -> optax.Params:
    """The group of every parameter, as a tree like `params`."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: param_group(_path(keys)), params)


def weight_decay_mask(params: optax.Params) -> optax.Params:
    """True for every tensor that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: "bias" not in _path(keys), params)


def scale_by_group(learning_rates: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies each update by minus the learning rate of its group.

    The state of `optax.partition` holds no arrays. It is not made part of the optimiser's state,
    because Orbax then could not restore checkpoints that were written without it.
    """
    scales = {group: optax.scale(-rate) for group, rate in learning_rates.items()}
    by_group = optax.partition(scales, param_groups)
    return optax.stateless(
        lambda updates, params: by_group.update(updates, by_group.init(updates), params)[0]
    )


def make_optimizer(
    learning_rate: float,
    clip_learning_rate: float,
    schedule_steps: int,
    *,
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.2,
    max_grad_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.98,
    epsilon: float = 1e-6,
    freeze_patches: bool = True,
) -> Optimizer:
    """Gradient clipping, Adam, weight decay, learning rates and schedule, as one optax chain."""
    learning_rates = {
        "patches": 0.0 if freeze_patches else clip_learning_rate,
        "clip": clip_learning_rate,
        "new": learning_rate,
    }

    def factor(step: Int[Array, ""]) -> Float[Array, ""]:
        return warmup_cosine(step, schedule_steps, warmup_fraction)

    init, update = optax.chain(
        clip_by_known_norm(max_grad_norm),
        scale_by_bert_adam(b1, b2, epsilon),
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
        scale_by_group(learning_rates),
        optax.scale_by_schedule(factor),
    )

    def update_if_finite(grads, state, params, *, norm=None, finite=True):
        updates, new_state = update(grads, state, params, norm=norm, finite=finite)
        counts = (optax.tree.get(x, "count") for x in (new_state, state))
        return updates, optax.tree.set(new_state, count=jnp.where(finite, *counts))

    return Optimizer(init, update_if_finite, lambda state: factor(optax.tree.get(state, "count")))


def optimizer_from_config(
    optimizer: ConfigDict, schedule_steps: int, freeze_patches: bool
) -> Optimizer:
    """The optimiser that the keys `optimizer.*` of a config describe."""
    return make_optimizer(
        optimizer.learning_rate,
        optimizer.clip_learning_rate,
        schedule_steps,
        warmup_fraction=optimizer.warmup_fraction,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        freeze_patches=freeze_patches,
    )


def apply_updates_and_clamp(params: optax.Params, updates: optax.Updates) -> optax.Params:
    """Adds the updates and clamps the logarithm of the temperature at ln 100."""
    params = optax.apply_updates(params, updates)
    scale = jnp.minimum(params["clip"]["logit_scale"], MAX_LOG_SCALE)
    return {**params, "clip": {**params["clip"], "logit_scale": scale}}

"""The optimiser: clipping, a rule, weight decay, two learning rates, a schedule (section 4.1).

By default it is the original's, with BERT's Adam, warm-up and cosine:
`p <- p - learning_rate · (m / (√v + 1e-6) + decay · p)`, without bias correction. Weight decay
applies to every tensor without `bias` in its name: norms, positions and the temperature
too. CLIP has its own learning rate; the patch convolution of a pretrained CLIP is frozen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from hvp_jax.parallel.sharding import SINGLE_DEVICE
from hvp_jax.training.optimization.param_groups import (
    ClipLayers,
    scale_by_group,
    scale_by_layer,
    weight_decay_mask,
)
from hvp_jax.training.optimization.schedules import SCHEDULES
from hvp_jax.training.optimization.update_rules import on_complete_arrays, update_rule

MAX_LOG_SCALE = 4.605170185988092  # ln 100
CLIP_EPSILON = 1e-6  # added to the norm by torch.nn.utils.clip_grad_norm_


class Optimizer(NamedTuple):
    """An optax transformation, and the factor that its schedule gives to the learning rates.

    `update` takes the global norm of the gradients as `norm`, and `finite`: if it is false, the
    state does not change, and the updates are not to be used. If a device holds shards of the
    gradients, it takes the `collectives` of the step, too.
    """

    init: Callable[[optax.Params], optax.OptState]
    update: Callable[..., tuple[optax.Updates, optax.OptState]]
    lr_factor: Callable[[optax.OptState], Any]  # [] of the update that follows a state


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


def make_optimizer(
    learning_rate: float,
    clip_learning_rate: float,
    schedule_steps: int,
    *,
    name: str = "bert_adam",
    schedule: str = "warmup_cosine",
    clip_layers: ClipLayers | None = None,
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.2,
    max_grad_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.98,
    epsilon: float = 1e-6,
    freeze_patches: bool = True,
) -> Optimizer:
    """Gradient clipping, update rule, weight decay, learning rates and schedule, as an optax chain.

    `name` and `schedule` are those of the config; `clip_layers` None: all layers learn alike.
    """
    learning_rates = {
        "patches": 0.0 if freeze_patches else clip_learning_rate,
        "clip": clip_learning_rate,
        "new": learning_rate,
    }

    def factor(step: Int[Array, ""]) -> Float[Array, ""]:
        return SCHEDULES[schedule](step, schedule_steps, warmup_fraction)

    rule = update_rule(name, b1, b2, epsilon)
    if clip_layers and clip_layers.learning is not None:  # what is frozen needs no state
        rule = optax.masked(rule, clip_layers.learns)
    init, update = optax.chain(
        clip_by_known_norm(max_grad_norm),
        on_complete_arrays(rule) if name == "muon" else rule,
        optax.add_decayed_weights(weight_decay, mask=weight_decay_mask),
        *([scale_by_layer(clip_layers)] if clip_layers else []),
        scale_by_group(learning_rates),
        optax.scale_by_schedule(factor),
    )

    def update_if_finite(
        grads, state, params, *, norm=None, finite=True, collectives=SINGLE_DEVICE
    ):
        updates, new_state = update(
            grads, state, params, norm=norm, finite=finite, collectives=collectives
        )
        count = jnp.where(finite, new_state[-1].count, state[-1].count)
        return updates, (*new_state[:-1], new_state[-1]._replace(count=count))

    return Optimizer(init, update_if_finite, lambda state: factor(state[-1].count))


def optimizer_from_config(
    optimizer: ConfigDict,
    schedule_steps: int,
    freeze_patches: bool,
    clip_layers: ClipLayers | None = None,
) -> Optimizer:
    """The optimiser that the keys `optimizer.*` of a config describe.

    `clip_layers` says what `clip_layers` and `layer_decay` mean for the towers of the model.
    """
    return make_optimizer(
        optimizer.learning_rate,
        optimizer.clip_learning_rate,
        schedule_steps,
        name=optimizer.name,
        schedule=optimizer.schedule,
        clip_layers=clip_layers,
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

"""One training step as a pure function of arrays.

`train_step` is written once; `hvp_jax/parallel/partitioner.py` lays it over devices. A device
holds a part of the batch. Texts are gathered, clips stay: each device scores every text
against its own clips, and the loss is put together of those columns. The gradient is
exactly that of the loss over the whole batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from data.batches.batch import Batch
from hvp_jax.models.losses import contrastive
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, scores
from hvp_jax.parallel.sharding import Collectives
from hvp_jax.training.optimizer import apply_updates_and_clamp
from hvp_jax.training.step_spec import StepSpec
from hvp_jax.training.train_state import TrainState

SINGLE_DEVICE = Collectives()


def per_clip_keys(seed: int, step: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """A random key for each clip of a global batch [count], the same on any number of devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def loss_from_features(
    text: TextFeatures,
    video: VideoFeatures,
    log_scale: jax.Array,
    paired: bool = False,
    chunk: int = 16,
    dtype: DTypeLike | None = None,
    axis: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Both sides of a device's part of a batch -> the loss of the whole, and its parts."""
    paired_weights = text.word_weights if paired else None
    if axis is not None:
        text = jax.lax.all_gather(text, axis, tiled=True)
    return contrastive(scores(text, video, paired_weights, chunk, dtype=dtype), log_scale, axis)


def loss_fn(
    params: optax.Params,
    step: jax.Array,
    batch: Batch,
    spec: StepSpec,
    axis: str | None = None,
    whole: Callable[[optax.Params], optax.Params] = lambda params: params,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss over the global batch, the same number on every device.

    `whole` makes whole parameters of those that a device holds.
    """
    local = batch.video.shape[0]
    keys = None
    if spec.noise:
        first = 0 if axis is None else jax.lax.axis_index(axis) * local
        keys = per_clip_keys(spec.seed, step, first, local)
    text, video, log_scale = spec.model.apply(
        {"params": whole(params)},
        *batch,
        key=keys,
    )
    return loss_from_features(
        text, video, log_scale, spec.paired, spec.chunk_size, spec.model.dtype, axis
    )


def train_step(
    state: TrainState, batch: Batch, spec: StepSpec, collectives: Collectives = SINGLE_DEVICE
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update and its metrics. A loss that is not finite changes nothing but the count.

    The batch is this device's part of the global batch.
    """
    grad_of = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, terms), grads = grad_of(
        state.params, state.step, batch, spec, collectives.axis, collectives.all_gather_params
    )
    grads = collectives.mean_gradients(grads)
    norm = collectives.global_norm(grads)
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params, norm=norm)
    params = apply_updates_and_clamp(state.params, updates)

    sound = jnp.isfinite(loss) & jnp.isfinite(norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    skipped = state.skipped + (1 - sound.astype(jnp.int32))
    metrics = {
        "loss": loss,
        **{f"loss/{name}": value for name, value in terms.items()},
        "grad_norm": norm,
        "log_scale": params["clip"]["logit_scale"],
        "skipped": skipped,
    }
    return TrainState(state.step + 1, skipped, params, opt_state), metrics

"""One training step as a pure function of arrays.

`train_step` is written once; `hvp_jax/parallel/partitioner.py` runs it on several devices, each
with its shard of the batch. Text features are gathered, video features are not: each device
scores every text against its own clips and contributes those columns to the loss. The gradient
is exactly that of the loss over the global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Num

from data.batches.batch import BatchOfClips, TrainBatch
from hvp_jax.models.losses import contrastive
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, scores, terms_of
from hvp_jax.parallel.sharding import SINGLE_DEVICE, Collectives
from hvp_jax.training.optimization.optimizer import apply_updates_and_clamp
from hvp_jax.training.step_spec import StepSpec
from hvp_jax.training.train_state import TrainState


def per_clip_keys(
    seed: int, step: Int[Array, ""] | int, first: Int[Array, ""] | int, count: int
) -> Key[Array, " {count}"]:
    """Random keys for clips `first` to `first + count` of a global batch.

    A clip has the same key on any number of devices.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def loss_from_features(
    text: TextFeatures,
    video: VideoFeatures,
    log_scale: Float[Array, ""],
    *,
    paired: bool = False,
    chunk_size: int = 16,
    dtype: DTypeLike | None = None,
    axis: str | tuple[str, ...] | None = None,
    form: str = "per_term",
    same_video: str = "negative",
    clip_ids: Int[Array, " clips"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Features of a device's shard of the batch -> loss over the global batch, and its terms.

    `form`, `same_video` and `clip_ids` as in `contrastive`.
    """
    paired_weights = text.word_weights if paired else None
    if axis is not None:
        text = jax.lax.all_gather(text, axis, tiled=True)
    return contrastive(
        scores(text, video, paired_weights, clip_chunk=chunk_size, dtype=dtype),
        log_scale,
        axis,
        terms=terms_of(video),
        form=form,
        same_video=same_video,
        clip_ids=clip_ids,
    )


def loss_fn(
    params: optax.Params,
    step: Int[Array, ""],
    batch: TrainBatch,
    spec: StepSpec,
    *,
    axis: str | tuple[str, ...] | None = None,
    all_gather_params: Callable[[optax.Params], optax.Params] = lambda params: params,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss over the global batch, the same number on every device.

    `all_gather_params` makes complete parameters of a device's shards.
    """
    local = batch.video.shape[0]
    keys = None
    if spec.noise:
        first = 0 if axis is None else jax.lax.axis_index(axis) * local
        keys = per_clip_keys(spec.seed, step, first, local)
    if spec.clip_layers:
        params = spec.clip_layers.stop_frozen_params(params)
    params = all_gather_params(params)
    features: Any = spec.model.apply({"params": params}, *batch[:4], key=keys)
    text, video, log_scale = features
    return loss_from_features(
        text,
        video,
        log_scale,
        paired=spec.paired,
        chunk_size=spec.chunk_size,
        dtype=spec.model.dtype,
        axis=axis,
        form=spec.loss_form,
        same_video=spec.same_video,
        clip_ids=batch.clip_ids if isinstance(batch, BatchOfClips) else None,
    )


def train_step(
    state: TrainState, batch: TrainBatch, spec: StepSpec, collectives: Collectives = SINGLE_DEVICE
) -> tuple[TrainState, dict[str, Num[Array, ""]]]:
    """One update and its metrics, from this device's shard of the global batch.

    If the loss or the gradient's norm is not finite, only the counters change.
    """
    assert spec.optimizer is not None, "a spec without an optimizer is only for the loss"
    (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params,
        state.step,
        batch,
        spec,
        axis=collectives.axis,
        all_gather_params=collectives.all_gather_params,
    )
    with jax.named_scope("exchange"):
        grads = collectives.mean_gradients(grads)
    with jax.named_scope("optimizer"):
        norm = collectives.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = spec.optimizer.update(
            grads,
            state.opt_state,
            state.params,
            norm=norm,
            finite=finite,
            collectives=collectives,
        )
        params = apply_updates_and_clamp(state.params, updates)
        params = jax.tree.map(lambda new, old: jnp.where(finite, new, old), params, state.params)
    skipped = state.skipped + (1 - finite.astype(jnp.int32))
    metrics = {
        "loss": loss,
        **{f"loss/{name}": value for name, value in terms.items()},
        "grad_norm": norm,
        "lr_factor": spec.optimizer.lr_factor(state.opt_state),
        "log_scale": params["clip"]["logit_scale"],
        "skipped": skipped,
    }
    return TrainState(state.step + 1, skipped, params, opt_state), metrics

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

from hvp_jax.models.losses import contrastive
from hvp_jax.models.similarity import Text, Video, scores
from hvp_jax.parallel.sharding import Shards
from hvp_jax.training.optimizer import apply
from hvp_jax.training.step_spec import Recipe
from hvp_jax.training.train_state import State

ALONE = Shards()


def clip_keys(seed: int, step: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """A random key for each clip of a global batch [count], the same on any number of devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def loss_of_features(
    text: Text,
    video: Video,
    log_scale: jax.Array,
    paired: bool = False,
    chunk: int = 16,
    dtype: jnp.dtype | None = None,
    axis: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Both sides of a device's part of a batch -> the loss of the whole, and its parts."""
    paired_weights = text.word_weights if paired else None
    if axis is not None:
        text = jax.lax.all_gather(text, axis, tiled=True)
    return contrastive(scores(text, video, paired_weights, chunk, dtype), log_scale, axis)


def batch_loss(
    params: optax.Params,
    step: jax.Array,
    batch: dict,
    recipe: Recipe,
    axis: str | None = None,
    whole: Callable[[optax.Params], optax.Params] = lambda params: params,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss over the global batch, the same number on every device.

    `whole` makes whole parameters of those that a device holds.
    """
    local = batch["video"].shape[0]
    keys = None
    if recipe.noise:
        first = 0 if axis is None else jax.lax.axis_index(axis) * local
        keys = clip_keys(recipe.seed, step, first, local)
    text, video, log_scale = recipe.model.apply(
        {"params": whole(params)},
        batch["text_ids"],
        batch["text_mask"],
        batch["video"],
        batch["video_mask"],
        keys,
    )
    return loss_of_features(
        text, video, log_scale, recipe.paired, recipe.chunk, recipe.model.dtype, axis
    )


def train_step(
    state: State, batch: dict, recipe: Recipe, shards: Shards = ALONE
) -> tuple[State, dict[str, jax.Array]]:
    """One update and its metrics. A loss that is not finite changes nothing but the count.

    The batch is this device's part: `video` [b, T, H, W, 3], `video_mask` [b, T],
    `text_ids` and `text_mask` [b, W].
    """
    grad_of = jax.value_and_grad(batch_loss, has_aux=True)
    (loss, terms), grads = grad_of(
        state.params, state.step, batch, recipe, shards.axis, shards.whole
    )
    grads = shards.mean(grads)
    norm = shards.norm(grads)
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params, norm=norm)
    params = apply(state.params, updates)

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
    return State(state.step + 1, skipped, params, opt_state), metrics

"""One training step, and the two encoders, as pure functions of arrays.

`train_step` is written once; `parallel.py` lays it over devices. A device holds a
part of the batch. Texts are gathered, clips stay: each device scores every text
against its own clips, and the small table of scores is gathered for the loss. The
gradient is then exactly that of the loss over the whole batch.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hvp_jax import optim
from hvp_jax.losses import contrastive
from hvp_jax.model import HVPNet
from hvp_jax.similarity import Text, Video, scores


@flax.struct.dataclass
class State:
    step: jax.Array  # batches seen
    skipped: jax.Array  # of them, how many had a loss that is not finite
    params: optax.Params
    opt_state: optax.OptState


@flax.struct.dataclass
class Recipe:
    """What a step needs beside arrays; hashable, so that it is compiled in."""

    model: HVPNet = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    seed: int = flax.struct.field(pytree_node=False, default=0)
    noise: bool = flax.struct.field(pytree_node=False, default=True)
    paired: bool = flax.struct.field(pytree_node=False, default=False)
    chunk: int = flax.struct.field(pytree_node=False, default=16)


def new_state(params: optax.Params, optimizer: optax.GradientTransformation) -> State:
    # Two counters, not one twice: a donated buffer must be the only one of its kind.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return State(step, skipped, params, optimizer.init(params))


def clip_keys(seed: int, step: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """A random key for each clip of a global batch [count], the same on any number of devices."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


# MERGE: a stand-in for the function of this name and signature on the branch that computes the
# loss of a device's own columns; drop it there.
def loss_of_features(
    text: Text,
    video: Video,
    log_scale: jax.Array,
    paired_weights: jax.Array | None,
    chunk: int,
    dtype: jnp.dtype,
    axis: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This device's features -> the loss over the global batch and its parts."""
    if axis is not None:
        text = jax.lax.all_gather(text, axis, tiled=True)
    table = scores(text, video, paired_weights, chunk, dtype)
    if axis is not None:
        table = jax.lax.all_gather(table, axis, axis=3, tiled=True)
    return contrastive(table, log_scale)


def batch_loss(
    params: optax.Params, step: jax.Array, batch: dict, recipe: Recipe, axis: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss over the global batch, the same number on every device."""
    local = batch["video"].shape[0]
    keys = None
    if recipe.noise:
        first = 0 if axis is None else jax.lax.axis_index(axis) * local
        keys = clip_keys(recipe.seed, step, first, local)
    text, video, log_scale = recipe.model.apply(
        {"params": params},
        batch["text_ids"],
        batch["text_mask"],
        batch["video"],
        batch["video_mask"],
        keys,
    )
    paired_weights = text.word_weights if recipe.paired else None
    return loss_of_features(
        text, video, log_scale, paired_weights, recipe.chunk, recipe.model.dtype, axis
    )


def train_step(
    state: State, batch: dict, recipe: Recipe, axis: str | None = None
) -> tuple[State, dict[str, jax.Array]]:
    """One update and its metrics. A loss that is not finite changes nothing but the count.

    The batch is this device's part: `video` [b, T, H, W, 3], `video_mask` [b, T],
    `text_ids` and `text_mask` [b, W].
    """
    grad_of = jax.value_and_grad(batch_loss, has_aux=True)
    (loss, parts), grads = grad_of(state.params, state.step, batch, recipe, axis)
    if axis is not None:
        grads = jax.lax.pmean(grads, axis)
    norm = optax.global_norm(grads)
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, state.params)
    params = optim.apply(state.params, updates)

    sound = jnp.isfinite(loss) & jnp.isfinite(norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(sound, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    skipped = state.skipped + (1 - sound.astype(jnp.int32))
    metrics = {
        "loss": loss,
        **{f"loss/{name}": value for name, value in parts.items()},
        "grad_norm": norm,
        "log_scale": params["clip"]["logit_scale"],
        "skipped": skipped,
    }
    return State(state.step + 1, skipped, params, opt_state), metrics


def encode_text(params: optax.Params, batch: dict, model: HVPNet) -> Text:
    """`text_ids` and `text_mask` [b, W] -> what scoring needs of the texts."""
    return model.apply(
        {"params": params}, batch["text_ids"], batch["text_mask"], method="encode_text"
    )


def encode_video(
    params: optax.Params, batch: dict, model: HVPNet, noise_seed: int | None = None
) -> Video:
    """`video` [b, T, H, W, 3], `video_mask` [b, T] -> what scoring needs of the clips.

    `noise_seed` turns the clustering's noise on (the reference), a key for each `index` [b].
    """
    keys = None
    if noise_seed is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(noise_seed), batch["index"])
    return model.apply(
        {"params": params}, batch["video"], batch["video_mask"], keys, method="encode_video"
    )

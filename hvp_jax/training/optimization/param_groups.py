"""Which parameters learn, at which rate, and to which weight decay applies (section 4.1).

CLIP has its own learning rate. A layer of its towers may have a fraction of it, and layers may be
frozen; the rate that falls from layer to layer is that of ELECTRA (arXiv 2003.10555, appendix A)
and BEiT (arXiv 2106.08254).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hvp_jax.parallel.sharding import SINGLE_DEVICE

# What a tower has before its first layer.
EMBEDDINGS = (
    *("patch_embedding", "class_embedding", "position_embedding", "token_embedding", "norm_pre"),
)


def path_of(keys) -> str:
    """The key path of a parameter as text, such as clip/visual/projection."""
    return "/".join(key.key for key in keys)


def param_group(path: str) -> str:
    """The group that sets a parameter's learning rate: "patches", "clip" or "new"."""
    if path == "clip/visual/patch_embedding":
        return "patches"
    return "clip" if path.startswith("clip/") else "new"


def param_groups(params: optax.Params) -> optax.Params:
    """The group of every parameter, as a tree like `params`."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: param_group(path_of(keys)), params)


def weight_decay_mask(params: optax.Params) -> optax.Params:
    """True for every tensor that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: "bias" not in path_of(keys), params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipLayers:
    """Which layers of CLIP's towers learn, and at which share of CLIP's learning rate.

    `learning` is the `learning_layers` of the model: None for all, or the last so many of each
    tower. The embeddings are then frozen as well; with 0 so is all of CLIP but its temperature,
    else the final norms and the projections learn. Layer i of L, counted from 1, learns at
    decay^(L - i), the embeddings at decay^L.
    """

    vision_layers: int
    text_layers: int
    learning: int | None = None
    decay: float = 1.0

    def share(self, path: str) -> float | np.ndarray:
        """The share of a parameter's learning rate, 0 if it is frozen.

        [layers] for a tensor of a tower's blocks, whose first axis is the layer.
        """
        if not path.startswith("clip/") or path == "clip/logit_scale":
            return 1.0
        _, tower, name, *_ = path.split("/")
        depth = self.vision_layers if tower == "visual" else self.text_layers
        if self.learning == 0:
            return np.zeros(depth) if name == "tower" else 0.0
        last = depth if self.learning is None else self.learning
        if name == "tower":
            behind = np.arange(depth)[::-1]  # how many layers come after each
            return np.where(behind < last, self.decay**behind, 0.0)
        if name in EMBEDDINGS:
            return self.decay**depth if self.learning is None else 0.0
        return 1.0

    def learns(self, params: optax.Params) -> optax.Params:
        """Whether any part of a parameter learns, as a tree like `params`."""
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: bool(np.any(self.share(path_of(keys)))), params
        )

    def stop_frozen_params(self, params: optax.Params) -> optax.Params:
        """The parameters, without a gradient where nothing of them learns.

        Frozen layers of a tower some of whose layers learn are left to `learning_layers` of the
        model.
        """
        if self.learning is None:
            return params
        return jax.tree.map(
            lambda x, learns: x if learns else jax.lax.stop_gradient(x), params, self.learns(params)
        )


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


def scale_by_layer(layers: ClipLayers) -> optax.GradientTransformationExtraArgs:
    """Multiplies each update by the share of its learning rate.

    `update` takes the `collectives` of a step whose devices hold shards of the updates.
    """

    def update(updates, state, params=None, *, collectives=SINGLE_DEVICE, **extra_args):
        del params, extra_args

        def scale(keys, u):
            share = layers.share(path_of(keys))
            if np.ndim(share) == 0:
                return u * share
            shares = jnp.asarray(share, u.dtype)
            if u.shape[0] < len(share):  # this device holds some of the layers
                first = jax.lax.axis_index(collectives.slice_axis) * u.shape[0]
                shares = jax.lax.dynamic_slice_in_dim(shares, first, u.shape[0])
            return u * shares.reshape(-1, *[1] * (u.ndim - 1))

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

"""How a gradient becomes an update, before weight decay and learning rate: the optimisers.

`bert_adam` is the original's. The others are optax's own: AdamW (Loshchilov and Hutter, arXiv
1711.05101), Lion (Chen et al., arXiv 2302.06675) and Muon (Jordan, 2024). Every rule takes
`finite`, a scalar: if it is false the state does not change.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from hvp_jax.parallel.sharding import SINGLE_DEVICE, shard_axis
from hvp_jax.training.optimization.param_groups import path_of

LION_B1, LION_B2 = 0.9, 0.99  # of Lion's paper
# Makes Muon's updates as large as AdamW's, so that a learning rate means the same (Liu et al.,
# arXiv 2502.16982).
MUON_RMS = 0.2


class BertAdamState(NamedTuple):
    mu: optax.Updates
    nu: optax.Updates


def scale_by_bert_adam(
    b1: float, b2: float, epsilon: float
) -> optax.GradientTransformationExtraArgs:
    """Adam without bias correction; moments are at least float32, whatever the weights are.

    The choice between old and new moments is made here, before they are used: made afterwards, XLA
    copies all old moments on a CPU.
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


def update_rule(
    name: str, b1: float, b2: float, epsilon: float
) -> optax.GradientTransformationExtraArgs:
    """The rule that `optimizer.name` names. The three numbers are those of Adam's moments.

    Muon orthogonalises matrices; the other tensors get Adam's updates.
    """
    if name == "bert_adam":
        return scale_by_bert_adam(b1, b2, epsilon)
    if name == "adamw":
        return _if_finite(optax.scale_by_adam(b1, b2, epsilon))
    if name == "lion":
        return _if_finite(optax.scale_by_lion(LION_B1, LION_B2))
    assert name == "muon", name
    muon = contrib.muon(
        learning_rate=-1.0,  # optax changes the sign; ours is changed with the learning rate
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=muon_dimensions,
        consistent_rms=MUON_RMS,
    )
    return _if_finite(muon)


def muon_dimensions(params: optax.Params) -> optax.Params:
    """Which axes of a parameter are a matrix's; None for one that Muon leaves to Adam.

    Matrices are the kernels and the projections of more than one row and column. A tower's are one
    for each layer; a convolution is one matrix of all its inputs.
    """

    def of_param(keys, x):
        path = path_of(keys)
        if not path.endswith(("/kernel", "/projection")) or min(x.shape[-2:]) == 1:
            return None
        if "/tower/blocks/" in path:
            return contrib.MuonDimensionNumbers(1, 2)
        return contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return jax.tree_util.tree_map_with_path(of_param, params)


def _if_finite(
    rule: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`rule`, whose state does not change if `finite` is false."""

    def update(grads, state, params=None, *, finite=True, **extra_args):
        del extra_args
        updates, new = rule.update(grads, state, params)
        return updates, jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def on_complete_arrays(
    rule: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`rule` for a device that holds shards: on complete arrays, of which it keeps its shards.

    For a rule that is not elementwise. `update` takes the `collectives` of the step. Every device
    holds all arrays for as long as the update takes.
    """

    def update(grads, state, params=None, *, collectives=SINGLE_DEVICE, **extra_args):
        if collectives.shard_axes is None:
            return rule.update(grads, state, params, **extra_args)
        grads, params = map(collectives.all_gather_params, (grads, params))
        devices = jax.lax.axis_size(collectives.slice_axis)
        axes = jax.tree.map(
            lambda x: shard_axis(x.shape, devices), jax.eval_shape(rule.init, grads)
        )
        state = collectives.all_gather(state, axes)
        updates, state = rule.update(grads, state, params, **extra_args)
        own = collectives.own_shards
        return own(updates, collectives.shard_axes), own(state, axes)

    return optax.GradientTransformationExtraArgs(rule.init, update)

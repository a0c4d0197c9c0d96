"""The optimisers of optax within ours: against optax itself, and with what ours adds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from optax import contrib

from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.optimization import optimizer
from hvp_jax.training.optimization.param_groups import ClipLayers
from hvp_jax.training.optimization.update_rules import BertAdamState, muon_dimensions
from hvp_jax.training.train_step import train_step
from tests.helpers.saved_states import batches_at
from tests.helpers.small import normal, random_params
from tests.helpers.train_steps import MODEL, batch_of, make_partitioner

pytestmark = pytest.mark.usefixtures("quick_compile")

RATE, DECAY = 1e-2, 0.2
OPTAX = {
    "adamw": optax.adamw(RATE, 0.9, 0.98, 1e-6, weight_decay=DECAY),
    "lion": optax.lion(RATE, 0.9, 0.99, weight_decay=DECAY),
    "muon": contrib.muon(RATE, consistent_rms=0.2, weight_decay=DECAY),
}
# As one program, not as hundreds.
create_train_state = jax.jit(train_state.create_train_state, static_argnums=1)
LAST = ClipLayers(vision_layers=3, text_layers=2, learning=1)


def make(name: str, **fields) -> optimizer.Optimizer:
    return optimizer.make_optimizer(RATE, RATE, 10, name=name, schedule="warmup_constant", **fields)


@pytest.mark.parametrize("name", OPTAX)
def test_three_updates_of_a_matrix_are_those_of_optax(name):
    params = {"word_weight": {"kernel": jnp.float32(normal(0, 6, 4))}}
    ours = make(name, warmup_fraction=0.0, max_grad_norm=1e9, weight_decay=DECAY)
    state, expected_state = ours.init(params), OPTAX[name].init(params["word_weight"]["kernel"])
    expected = params["word_weight"]["kernel"]
    for step in range(3):
        gradient = jnp.float32(normal(step + 1, 6, 4))
        updates, state = ours.update({"word_weight": {"kernel": gradient}}, state, params)
        params = optax.apply_updates(params, updates)
        change, expected_state = OPTAX[name].update(gradient, expected_state, expected)
        expected = optax.apply_updates(expected, change)
        np.testing.assert_allclose(params["word_weight"]["kernel"], expected, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(MODEL, *batch_of(0))


def test_muon_takes_every_layer_and_every_convolution_as_one_matrix(params):
    dimensions = flatten_dict(muon_dimensions(params), sep="/")
    shapes = {path: x.shape for path, x in flatten_dict(params, sep="/").items()}
    expected = {}
    for path, shape in shapes.items():
        if path.endswith(("/kernel", "/projection")) and shape[-1] > 1:
            per_layer = "/tower/" in path
            axes = (1, 2) if per_layer else (tuple(range(len(shape) - 1)), len(shape) - 1)
            expected[path] = contrib.MuonDimensionNumbers(*axes)
    assert {path: x for path, x in dimensions.items() if x is not None} == expected
    assert {"clip/text/projection", "distill/stage_0/conv/kernel"} <= set(expected)

    gradients = jax.tree.map(lambda x: np.float32(normal(x.size, *x.shape)), params)
    ours = make("muon", warmup_fraction=0.0, weight_decay=0.0)
    updates, _ = jax.jit(ours.update)(gradients, jax.jit(ours.init)(params), params)
    path = "clip/visual/tower/blocks/mlp_in/kernel"  # [3, 64, 256]
    for update in np.asarray(flatten_dict(updates, sep="/")[path]):
        # Newton-Schulz leaves singular values near 1; times 0.2 √256 and the learning rate.
        values = np.linalg.svd(update / (RATE * 0.2 * 16), compute_uv=False)
        assert 0.6 < values.min() and values.max() < 1.3
    path = "distill/stage_0/conv/kernel"  # [3, 32, 32]
    update = np.asarray(flatten_dict(updates, sep="/")[path]).reshape(96, 32)
    values = np.linalg.svd(update / (RATE * 0.2 * 96**0.5), compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.3


@pytest.mark.parametrize("name", OPTAX)
def test_gradients_that_are_not_finite_change_no_state(name, params):
    ours = make(name, clip_layers=LAST)
    update = jax.jit(ours.update)
    _, state = update(params, jax.jit(ours.init)(params), params, finite=jnp.array(True))
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), params)
    _, after = update(broken, state, params, finite=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)
    _, good = update(params, state, params, finite=jnp.array(True))
    assert int(good[-1].count) == int(state[-1].count) + 1 == 2


def test_the_default_has_the_state_of_before(params):
    """So that a checkpoint of an earlier version is restored."""
    state = optimizer.make_optimizer(1e-3, 1e-3, 10).init(params)
    assert [type(part).__name__ for part in state] == [
        *("EmptyState", "BertAdamState", "MaskedState", "EmptyState", "ScaleByScheduleState"),
    ]
    assert isinstance(state[1], BertAdamState)
    assert jax.tree.structure(state[1].mu) == jax.tree.structure(params)
    assert len(jax.tree.leaves(state)) == 2 * len(jax.tree.leaves(params)) + 1


@pytest.fixture(scope="module")
def after_two_steps(params):
    """(name, the partitioner's arguments) -> the state after two steps of a small model."""

    @functools.cache
    def run(name: str, *arguments) -> train_state.TrainState:
        tx = make(name, clip_layers=LAST, warmup_fraction=0.0)
        spec = step_spec.StepSpec(
            model=MODEL.clone(learning_layers=1), optimizer=tx, noise=False, clip_layers=LAST
        )
        partitioner = make_partitioner("shard_map", *arguments)
        state = partitioner.shard_state(create_train_state(params, tx))
        step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
        for i in range(2):
            state, metrics = step(state, partitioner.shard_batch(batch_of(i)))
        assert np.isfinite(metrics["loss"]) and int(state.skipped) == 0
        return state

    return run


@pytest.mark.parametrize(("name", "slices"), [("lion", 1), ("muon", 1), ("muon", 2)])
def test_eight_devices_with_shards_make_the_updates_of_one(name, slices, after_two_steps):
    """Two steps of a small model; a large matrix and its moments are sharded over the devices."""
    states = one, sharded = after_two_steps(name, False, 1), after_two_steps(name, True, 8, slices)
    kernel = sharded.params["clip"]["visual"]["tower"]["blocks"]["mlp_in"]["kernel"]
    moments = [m for m in jax.tree.leaves(sharded.opt_state) if m.shape == kernel.shape]
    sizes = {m.addressable_shards[0].data.size * 8 // slices for m in moments}
    assert sizes == {kernel.size}
    pairs = zip(*(jax.tree.leaves(state.params) for state in states), strict=True)
    errors = np.concatenate([np.abs(np.asarray(x) - np.asarray(y)).ravel() for x, y in pairs])
    # Signs and orthogonalisation magnify the rounding of gradients near 0.
    assert (errors > 0.01 * RATE).mean() < 0.01


@pytest.mark.parametrize("name", ["lion", "muon"])  # one state of optax's own, one of groups
def test_a_checkpoint_keeps_the_state(name, params, tmp_path):
    tx = make(name, clip_layers=LAST)
    state = create_train_state(params, tx)
    gradients = jax.tree.map(lambda x: np.float32(normal(x.size, *x.shape)), params)
    update = jax.jit(tx.update)
    _, opt_state = update(gradients, state.opt_state, params)
    partitioner = Partitioner("shard_map")
    state = partitioner.shard_state(state._replace(opt_state=opt_state))
    batches = batches_at(1)
    with Checkpointer(tmp_path, 1) as checkpoints:
        checkpoints.save(1, state.items(), batches, None)
    fresh = partitioner.shard_state(create_train_state(params, tx))
    with Checkpointer(tmp_path, 1) as checkpoints:
        items, at = checkpoints.restore_latest(fresh.items(), batches, print)
    restored = train_state.TrainState.from_items(items)
    assert at == 1 and jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)
    update(gradients, restored.opt_state, params)

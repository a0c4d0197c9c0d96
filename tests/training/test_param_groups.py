"""Which layers of CLIP learn and at which rate: bit for bit, and by the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs.base import get_config
from hvp_jax.config.resolve import resolve
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.model_spec import learning_layers
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.sharding import Collectives
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.optimization import optimizer
from hvp_jax.training.optimization.param_groups import ClipLayers, scale_by_layer
from hvp_jax.training.train_step import loss_fn, train_step
from tests.helpers.small import random_params
from tests.helpers.train_steps import MODEL, batch_of

pytestmark = pytest.mark.usefixtures("quick_compile")

RATE = 1e-2


def layers(learning: int | None = None, decay: float = 1.0) -> ClipLayers:
    """Of MODEL."""
    return ClipLayers(vision_layers=3, text_layers=2, learning=learning, decay=decay)


def frozen(layers: ClipLayers | None) -> HVPNet:
    return MODEL.clone(learning_layers=layers.learning if layers else None)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(MODEL, *batch_of(0))


def flat(tree) -> dict:
    return flatten_dict(jax.tree.map(np.asarray, tree), sep="/")


def train(params, clip_layers, steps=2, arguments=("shard_map", False, 1)):
    tx = optimizer.make_optimizer(
        RATE, RATE, 10, warmup_fraction=0.0, clip_layers=clip_layers, freeze_patches=False
    )
    spec = step_spec.StepSpec(
        model=frozen(clip_layers), optimizer=tx, noise=False, clip_layers=clip_layers
    )
    partitioner = Partitioner(*arguments[:2], jax.devices()[: arguments[2]])
    state = partitioner.shard_state(train_state.create_train_state(params, tx))
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    for i in range(steps):
        state, metrics = step(state, partitioner.shard_batch(batch_of(i)))
    return state, {name: float(x) for name, x in jax.device_get(metrics).items()}


HEAD = ("norm_post", "norm_final", "projection")


@pytest.mark.parametrize("arguments", [("shard_map", False, 1), ("shard_map", True, 8)])
@pytest.mark.parametrize("learning", [0, 1, 2])
def test_frozen_parameters_stay_bit_for_bit_and_the_others_move(params, learning, arguments):
    state, _ = train(params, layers(learning), arguments=arguments)
    before, after = flat(params), flat(state.params)
    for path, x in before.items():
        changed = after[path] != x
        if not path.startswith("clip/") or path == "clip/logit_scale":
            assert changed.any() or "dense_2/bias" in path, path  # which a softmax ignores
        elif "/tower/" in path:
            assert not changed[: len(x) - learning].any(), path
            assert all(layer.any() for layer in changed[len(x) - learning :]), path
        else:
            learns = learning and path.split("/")[2] in HEAD
            assert changed.any() == bool(learns), path


def test_frozen_parameters_have_no_moments_and_no_share_of_the_norm(params):
    moments = {
        learning: len(
            jax.tree.leaves(
                optimizer.make_optimizer(RATE, RATE, 10, clip_layers=layers(learning)).init(params)
            )
        )
        for learning in (0, 1)
    }
    outside = [p for p in flat(params) if not p.startswith("clip/")]
    assert moments[0] == 2 * (len(outside) + 1) + 1
    inside = [p for p in flat(params) if p.startswith("clip/") and p != "clip/logit_scale"]
    heads = [p for p in inside if p.split("/")[2] in ("tower", *HEAD)]
    assert moments[1] == 2 * (len(outside) + 1 + len(heads)) + 1

    def gradient(clip_layers):
        spec = step_spec.StepSpec(
            model=frozen(clip_layers), optimizer=None, noise=False, clip_layers=clip_layers
        )
        loss = functools.partial(loss_fn, spec=spec)
        return flat(
            jax.jit(jax.grad(lambda p, batch: loss(p, jnp.int32(0), batch)[0]))(params, batch_of(0))
        )

    complete, last = gradient(None), gradient(layers(1))
    for path, x in complete.items():
        share = np.asarray(layers(1).share(path))
        share = share.reshape(-1, *[1] * (x.ndim - 1)) if share.ndim else share
        np.testing.assert_allclose(last[path], x * (share > 0), rtol=1e-4, atol=1e-6)
    _, metrics = train(params, layers(1), 1)
    norm = np.sqrt(sum((x**2).sum() for x in last.values()))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert norm < 0.99 * np.sqrt(sum((x**2).sum() for x in complete.values()))


def test_without_layers_that_learn_the_towers_have_no_backward_pass(params):
    def loops(clip_layers):
        spec = step_spec.StepSpec(
            model=frozen(clip_layers), optimizer=None, noise=False, clip_layers=clip_layers
        )
        loss = functools.partial(loss_fn, spec=spec)
        jaxpr = jax.make_jaxpr(jax.grad(lambda p, batch: loss(p, jnp.int32(0), batch)[0]))(
            params, jax.tree.map(jnp.asarray, batch_of(0))
        )
        return [count_scans(jaxpr.jaxpr, depth) for depth in (3, 2, 1)]

    # Forwards and backwards over the layers of each tower, of 3 and 2 layers.
    *complete, other = loops(None)
    assert complete == [2, 2]
    assert loops(layers(0)) == [1, 1, other]
    # Forwards over 2 and 1 frozen layers, both ways over the last layer of each.
    assert loops(layers(1)) == [0, 1, other + 1 + 2 * 2]


def count_scans(jaxpr, length: int) -> int:
    """How many loops over that many layers there are."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == "scan" and eqn.params["length"] == length
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                count += count_scans(inner, length)
    return count


def expected_share(path: str, decay: float) -> list[float]:
    """By hand, for MODEL: three layers of vision and two of text."""
    if not path.startswith("clip/") or path == "clip/logit_scale":
        return [1.0]
    visual = path.startswith("clip/visual/")
    if "/tower/" in path:
        return [decay**2, decay, 1.0] if visual else [decay, 1.0]
    if path.split("/")[2] in HEAD:
        return [1.0]
    return [decay**3 if visual else decay**2]


@pytest.mark.parametrize("name", ["bert_adam", "lion"])
def test_one_step_of_a_constant_gradient_has_the_rate_of_its_layer(params, name):
    """The first update of a constant gradient is the same number for every element."""
    decay, new_rate, clip_rate = 0.65, 1e-3, 1e-4
    tx = optimizer.make_optimizer(
        new_rate, clip_rate, 10, name=name, clip_layers=layers(decay=decay), warmup_fraction=0.0,
        weight_decay=0.0, max_grad_norm=1e9, epsilon=0.0, freeze_patches=False,
    )  # fmt: skip
    gradient = jax.tree.map(lambda x: np.full_like(x, 0.5), params)
    # One program each, not hundreds.
    updates, _ = jax.jit(tx.update)(gradient, jax.jit(tx.init)(params), params)
    size = 0.1 / np.sqrt(0.02) if name == "bert_adam" else 1.0  # m/√v of the first update
    for path, update in flat(updates).items():
        rate = clip_rate if path.startswith("clip/") else new_rate
        share = np.array(expected_share(path, decay))
        share = share.reshape(-1, *[1] * (update.ndim - 1)) if len(share) > 1 else share[0]
        np.testing.assert_allclose(-update, np.ones_like(update) * rate * size * share, 1e-5)


def test_weight_decay_falls_with_the_rate_too(params):
    tx = optimizer.make_optimizer(
        RATE, RATE, 10, clip_layers=layers(decay=0.5), warmup_fraction=0.0, freeze_patches=False
    )
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, jax.jit(tx.init)(params), params)
    path = "clip/visual/tower/blocks/mlp_in/kernel"
    share = np.array([0.25, 0.5, 1.0]).reshape(3, 1, 1)
    np.testing.assert_allclose(flat(updates)[path], -RATE * 0.2 * share * flat(params)[path], 1e-5)


def test_a_device_that_holds_some_layers_takes_their_rates():
    """A stack of more layers than a layer has elements is sharded by layers."""
    rates = scale_by_layer(ClipLayers(vision_layers=16, text_layers=1, decay=0.9))
    updates = {"clip": {"visual": {"tower": {"bias": jnp.ones((16, 3))}}}}
    spec = jax.sharding.PartitionSpec("batch")
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))

    def scale(x):
        return rates.update(x, (), None, collectives=Collectives("batch"))[0]

    sharded = jax.shard_map(scale, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    scaled = jax.jit(sharded)(updates)["clip"]["visual"]["tower"]["bias"]
    expected = np.repeat(0.9 ** np.arange(16)[::-1, None], 3, axis=1)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_the_default_of_the_config_freezes_nothing_and_changes_no_update():
    config = resolve(get_config())
    model = MODEL
    assert learning_layers(config) is None
    assert step_spec.clip_layers_from_config(config.optimizer, model) is None
    for text, count in (("none", 0), ("last:1", 1), ("last:12", 12)):
        config.optimizer.clip_layers = text
        assert learning_layers(config) == count
        last = MODEL.clone(learning_layers=count)
        assert step_spec.clip_layers_from_config(config.optimizer, last) == layers(count)
    config.optimizer.clip_layers, config.optimizer.layer_decay = "all", 0.8
    config.train.steps = 5
    spec = step_spec.step_spec_from_config(config, model, 100)
    assert spec.clip_layers == layers(decay=0.8)
    assert len(spec.optimizer.init({"a": jnp.zeros(2)})) == 6  # one part more than without


def test_what_is_frozen_costs_no_operations_of_a_backward_pass():
    counts = {
        kept: flops.training_step(MODEL.clone(learning_layers=kept), 4, 3, 6)
        for kept in (None, 0, 1, 2, 3)
    }
    assert counts[0] < counts[1] < counts[2] < counts[3] <= counts[None]
    config = MODEL.clip_config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    layer = 3 * flops.tower(tokens, config.vision_width, 1)
    # From 2 layers to 3, of the vision tower alone: the text tower has 2.
    assert counts[3] - counts[2] == pytest.approx(4 * 2 * layer)

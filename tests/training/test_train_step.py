"""The training step gives the same numbers on one or eight devices, by pmap or shard_map."""

import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import score_weights, similarity
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parallel.sharding import MIN_SHARDED_SIZE
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.train_step import loss_fn, per_clip_keys, train_step
from tests.helpers.small import SIZES, normal, random_params
from tests.helpers.train_steps import BATCH, MODEL, OPTIMIZER, WORDS, batch_of, make_partitioner

pytestmark = pytest.mark.usefixtures("quick_compile")

PARTITIONERS = {
    "pmap 1": ("pmap", False, 1),
    "pmap 8": ("pmap", False, 8),
    "fsdp 8": ("shard_map", True, 8),
    "fsdp 2x4": ("shard_map", True, 8, 2),
}
NAMES = list(PARTITIONERS)


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(MODEL, *batch_of(0))


@pytest.fixture(scope="module")
def steps(params) -> dict:
    """The compiled step of each partitioner, for unsharded batches."""
    spec = step_spec.StepSpec(model=MODEL, optimizer=OPTIMIZER, seed=3)
    step = functools.partial(train_step, spec=spec)
    shapes = jax.eval_shape(lambda: train_state.create_train_state(params, OPTIMIZER))
    compiled = {}
    for name, arguments in PARTITIONERS.items():
        partitioner = make_partitioner(*arguments)
        compiled[name] = functools.partial(
            _shard_and_step, partitioner, partitioner.compile_train_step(step, shapes)
        )
    return compiled


def _shard_and_step(partitioner: Partitioner, step, state, batch):
    return step(state, partitioner.shard_batch(batch))


@pytest.fixture(scope="module")
def runs(steps, params) -> dict:
    """Five steps of each: metrics, the last state as NumPy, donated states, the last state."""
    results = {}
    for name, arguments in PARTITIONERS.items():
        state = train_state.create_train_state(params, OPTIMIZER)
        state = make_partitioner(*arguments).shard_state(state)
        curve, donated = [], []
        for i in range(5):
            donated.append(state)
            state, metrics = steps[name](state, batch_of(i))
            curve.append(to_numpy(metrics))
        results[name] = (curve, to_numpy(state), donated, state)
    return results


def test_there_are_eight_devices():
    assert jax.device_count() == 8


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_partitioner_matches_one_device(runs, name):
    (curve, state, *_), (expected_curve, expected, *_) = runs[name], runs["pmap 1"]
    for metrics, expected_metrics in zip(curve, expected_curve, strict=True):
        assert metrics.keys() == expected_metrics.keys() >= {"loss", "grad_norm", "skipped"}
        for key, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    for part in ("params", "opt_state"):
        pairs = zip(*(jax.tree.leaves(getattr(s, part)) for s in (state, expected)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert (state.step, state.skipped) == (5, 0)


def test_the_steps_change_every_parameter_that_is_not_frozen(runs, params):
    curve, state, *_ = runs["pmap 1"]
    assert 0 < curve[0]["loss"] < 100 and np.isfinite(curve[2]["grad_norm"])
    parts = [value for key, value in curve[0].items() if key.startswith("loss/")]
    assert len(parts) == 6 and sum(parts) == pytest.approx(curve[0]["loss"], rel=1e-5)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert change["clip"]["visual"].pop("patch_embedding") == 0
    # A softmax ignores what all tokens share, so this bias changes by rounding errors at most.
    for network in ("word_weight", "patch_weight", "frame_weight"):
        change[network]["dense_2"].pop("bias")
    assert min(jax.tree.leaves(change)) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_states_are_donated_and_the_initial_params_are_not(runs, params, name):
    for state in runs[name][2]:
        assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state)))
    assert np.isfinite(params["clip"]["logit_scale"])


@pytest.mark.parametrize(("name", "shards"), [("fsdp 8", 8), ("fsdp 2x4", 4)])
def test_with_fsdp_a_device_holds_its_shard(runs, name, shards):
    state = runs[name][3]
    kernel = state.params["clip"]["visual"]["tower"]["blocks"]["mlp_in"]["kernel"]
    moments = [m for m in jax.tree.leaves(state.opt_state) if m.shape == kernel.shape]
    assert moments
    for x in (kernel, *moments):
        assert x.addressable_shards[0].data.size == x.size // shards
    replicated = make_partitioner(*PARTITIONERS[name]).replicate_params(state.params)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(replicated))


def test_parameters_are_gathered_inside_a_slice(params):
    """And their gradients are scattered there; what is all-reduced between slices is scattered."""
    spec = step_spec.StepSpec(model=MODEL, optimizer=OPTIMIZER, seed=3)
    partitioner = make_partitioner(*PARTITIONERS["fsdp 2x4"])
    state = jax.eval_shape(lambda: train_state.create_train_state(params, OPTIMIZER))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of(0))
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    lowered = step.lower(partitioner.abstract_state(state), partitioner.abstract_batch(batch))
    # The groups of devices, and the shape of the result.
    collective = r"stablehlo\.{}.*?replica_groups = dense<(.*?)>.*?-> tensor<((?:\d+x)*)\w+>"
    found = {
        kind: re.findall(collective.format(kind), lowered.as_text(), re.DOTALL)
        for kind in ("all_gather", "reduce_scatter", "all_reduce")
    }
    of_a_slice, between = "[[0, 1, 2, 3], [4, 5, 6, 7]]", "[[0, 4], [1, 5], [2, 6], [3, 7]]"
    everywhere = "[[0, 1, 2, 3, 4, 5, 6, 7]]"
    by_groups = {
        kind: {groups: [shape for g, shape in pairs if g == groups] for groups, _ in pairs}
        for kind, pairs in found.items()
    }
    sharded = sum(x.size >= MIN_SHARDED_SIZE for x in jax.tree.leaves(params))
    assert len(by_groups["all_gather"][of_a_slice]) == sharded > 3
    learning = sharded - 1  # the embedding of patches is frozen
    assert len(by_groups["reduce_scatter"][of_a_slice]) == learning
    assert len(by_groups["all_reduce"][between]) >= learning
    assert set(by_groups["all_gather"]) | set(by_groups["reduce_scatter"]) == {
        of_a_slice,
        everywhere,  # the features of the texts
    }
    texts = [math.prod(map(int, s.split("x")[:-1])) for s in by_groups["all_gather"][everywhere]]
    assert max(texts) <= BATCH * WORDS * SIZES.embed_dim


def test_a_stop_flag_is_in_the_metrics(runs):
    partitioner = make_partitioner(*PARTITIONERS["pmap 8"])
    state, batch = partitioner.shard_state(runs["pmap 8"][1]), batch_of(0)
    _, metrics = partitioner.compile_train_step(lambda s, b, collectives: (s, {}), state)(
        state, partitioner.shard_batch(batch, stop=True)
    )
    assert metrics == {"stop": 1}
    assert runs["pmap 8"][0][0]["stop"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_with_a_nan_is_skipped_and_the_next_one_is_not(runs, steps, name, caplog):
    """The skipped update is counted, and nothing is recompiled."""
    _, before, _, state = runs[name]
    bad = batch_of(5)
    bad.video[3, 0, 7, 7, 1] = np.nan
    with jax.log_compiles():
        state, metrics = steps[name](state, bad)
        after, metrics = to_numpy(state), to_numpy(metrics)
        assert not np.isfinite(metrics["loss"])
        assert (after.step, after.skipped, metrics["skipped"]) == (6, 1, 1)
        assert metrics["lr_factor"] == pytest.approx(0.5)  # of the sixth update of ten
        for part in ("params", "opt_state"):
            pairs = (jax.tree.leaves(getattr(s, part)) for s in (after, before))
            for a, b in zip(*pairs, strict=True):
                np.testing.assert_array_equal(a, b)
        state, metrics = steps[name](state, batch_of(6))
    good = to_numpy(state)
    assert np.isfinite(metrics["loss"]) and (good.step, good.skipped) == (7, 1)
    assert metrics["lr_factor"] == pytest.approx(0.5)  # again: the skipped update does not count
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), good.params, before.params)
    assert change["word_weight"]["dense_0"]["kernel"] > 1e-7
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def apply_linear(variables, ids, mask, video, video_mask, *, key):
    del video_mask
    params = variables["params"]
    words = similarity.l2_normalize(jax.nn.one_hot(ids, SIZES.vocab_size) @ params["clip"]["words"])
    pixels = video.reshape(*video.shape[:3], -1, 3)  # the devices get them as one axis
    features = pixels[:, 0, 0] @ params["distill"]  # [B, 32, D]
    if key is not None:
        noise = jax.vmap(jax.random.normal, (0, None))(key, features.shape[1:])
        features = features + noise * params["scale"]
    patches = similarity.l2_normalize(features)[:, None, :4]  # [B, 1, 4, D]
    weights = score_weights.normalize_token_weights((words**3).sum(-1), mask, "softmax")
    text = similarity.TextFeatures(words, weights, words[:, 1])
    ones = jnp.ones(patches.shape[:3])
    video = similarity.VideoFeatures(patches, ones, patches.sum(2), patches.sum(2) ** 3)
    return text, video, params["clip"]["logit_scale"]


# One product for text and one for video, mostly noise: it compiles fast and every key matters.
LINEAR = mock.Mock(spec=HVPNet, dtype=jnp.float32, apply=apply_linear)


def linear_params() -> dict:
    return {
        "clip": {
            "logit_scale": np.float32(1),
            "words": np.float32(normal(0, SIZES.vocab_size, 6)),
        },
        "distill": np.float32(normal(1, 3, 6)),
        "scale": np.float32(1),
    }


def three_steps(train_step, state, batch):
    losses = []
    for _ in range(3):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, to_numpy(state.params)


def test_noise_and_loss_do_not_depend_on_the_number_of_devices():
    spec = step_spec.StepSpec(model=LINEAR, optimizer=OPTIMIZER, seed=1, paired=True, chunk_size=3)
    step = functools.partial(train_step, spec=spec)
    state, batch = train_state.create_train_state(linear_params(), OPTIMIZER), batch_of(0)
    losses, params = three_steps(jax.jit(step), state, batch)
    assert losses[1] != losses[0]  # the first update changes no parameter, but the noise differs
    for arguments in (("pmap", False, 2), ("shard_map", False, 4)):
        partitioner = make_partitioner(*arguments)
        compiled = partitioner.compile_train_step(step, state)
        other_losses, other_params = three_steps(
            compiled, partitioner.shard_state(state), partitioner.shard_batch(batch)
        )
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(other_params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_noise_and_pairing_follow_the_spec():
    def loss(at=0, **fields):
        spec = step_spec.StepSpec(model=LINEAR, optimizer=None, **fields)
        compiled = jax.jit(functools.partial(loss_fn, spec=spec))
        return float(compiled(linear_params(), at, batch_of(0))[0])

    noisy, noiseless = loss(seed=1), loss(noise=False)
    assert loss(seed=1) == noisy and loss(noise=False, at=1) == noiseless
    losses = [noisy, noiseless, loss(seed=2), loss(seed=1, at=1), loss(noise=False, paired=True)]
    assert np.diff(sorted(losses)).min() > 1e-3


def test_the_key_of_a_clip_does_not_depend_on_its_device():
    keys = jax.random.key_data(per_clip_keys(7, 3, 0, 8))
    assert len({tuple(key) for key in keys.tolist()}) == 8
    for first in (0, 2, 6):
        part = jax.random.key_data(per_clip_keys(7, 3, first, 2))
        np.testing.assert_array_equal(part, keys[first : first + 2])
    for seed, at in ((8, 3), (7, 4)):
        other = jax.random.key_data(per_clip_keys(seed, at, 0, 8))
        assert (other != keys).any(axis=1).all()

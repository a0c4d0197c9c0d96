"""The flags of the loss in a training step, on one device and on eight."""

import functools

import jax
import numpy as np
import pytest

from configs.base import get_config
from data.batches.batch import BatchOfClips
from hvp_jax.bench import step as bench_step
from hvp_jax.config.resolve import resolve
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.train_step import train_step
from tests.helpers.train_steps import MODEL, OPTIMIZER, batch_of
from tests.training.test_train_step import LINEAR, linear_params, make_partitioner, to_numpy

CLIP_IDS = np.array([3, 0, 3, 1, 0, 5, 3, 6], np.int32)
FLAGS = {
    "default": {},
    "summed_score": {"loss_form": "summed_score"},
    "ignored": {"same_video": "ignored"},
    "positive": {"same_video": "positive"},
    "both": {"loss_form": "summed_score", "same_video": "ignored"},
}


def two_steps(ids, arguments, **flags):
    """Metrics of two steps and the parameters after them."""
    spec = step_spec.StepSpec(model=LINEAR, optimizer=OPTIMIZER, noise=False, **flags)
    partitioner = make_partitioner(*arguments)
    state = train_state.create_train_state(linear_params(), OPTIMIZER)
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    state, curve = partitioner.shard_state(state), []
    for i in range(2):
        batch = batch_of(i) if ids is None else BatchOfClips(*batch_of(i), ids)
        state, metrics = step(state, partitioner.shard_batch(batch))
        curve.append(to_numpy(metrics))
    return curve, to_numpy(state.params)


@pytest.fixture(scope="module")
def on_one_device() -> dict:
    return {name: two_steps(CLIP_IDS, ("pmap", False, 1), **flags) for name, flags in FLAGS.items()}


def test_every_flag_changes_the_loss_and_logs_what_is_computed(on_one_device):
    losses = {name: float(curve[0]["loss"]) for name, (curve, _) in on_one_device.items()}
    assert np.diff(sorted(losses.values())).min() > 1e-3
    for name, (curve, _) in on_one_device.items():
        parts = [float(x) for key, x in curve[0].items() if key.startswith("loss/")]
        if "loss_form" in FLAGS[name]:
            assert not parts
        else:
            assert len(parts) == 3 and sum(parts) == pytest.approx(losses[name], rel=1e-5)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("arguments", [("pmap", False, 8), ("shard_map", False, 4)])
def test_the_number_of_devices_changes_no_number(on_one_device, name, arguments):
    curve, params = two_steps(CLIP_IDS, arguments, **FLAGS[name])
    expected_curve, expected = on_one_device[name]
    for metrics, expected_metrics in zip(curve, expected_curve, strict=True):
        assert metrics.keys() == expected_metrics.keys()
        for key in ("loss", "grad_norm"):
            np.testing.assert_allclose(metrics[key], expected_metrics[key], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)


@pytest.mark.parametrize("same_video", ["ignored", "positive"])
def test_where_no_clip_meets_itself_all_roles_are_the_same(same_video):
    one = ("pmap", False, 1)
    curve, _ = two_steps(np.arange(8, dtype=np.int32), one, same_video=same_video)
    expected, _ = two_steps(None, one)
    for metrics, expected_metrics in zip(curve, expected, strict=True):
        for key in ("loss", "grad_norm"):
            np.testing.assert_allclose(metrics[key], expected_metrics[key], rtol=1e-5)


def test_the_config_says_what_a_step_and_its_batches_need():
    config = get_config()
    config.model.variant, config.train.steps, config.train.batch_size = "tiny", 5, 8
    config = resolve(config)
    spec = step_spec.step_spec_from_config(config, MODEL, 100)
    assert (spec.loss_form, spec.same_video) == ("per_term", "negative")
    rng = np.random.default_rng(0)
    assert not isinstance(bench_step.random_batch(config, MODEL, rng), BatchOfClips)
    config.loss.form, config.loss.same_video = "summed_score", "positive"
    spec = step_spec.step_spec_from_config(config, MODEL, 100)
    assert (spec.loss_form, spec.same_video) == ("summed_score", "positive")
    assert bench_step.random_batch(config, MODEL, rng).clip_ids.tolist() == list(range(8))

"""Training steps of other heads than the paper's: on several devices, and of the baseline."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.config.overrides import load, override
from hvp_jax.config.resolve import resolve
from hvp_jax.models import similarity
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.train_step import train_step
from tests.helpers.command import ROOT
from tests.helpers.small import SIZES, captions, clips, random_params
from tests.helpers.train_steps import OPTIMIZER, batch_of

pytestmark = pytest.mark.usefixtures("quick_compile")

MODEL = HVPNet(
    SIZES, (1, 3), stages=1, terms=("sentence_patch", "sentence_clip"), tap_weights="learned"
)


def steps(arguments: tuple) -> tuple:
    """The metrics of two steps and the parameters after them."""
    kind, fsdp, devices = arguments
    partitioner = Partitioner(kind, fsdp, jax.devices()[:devices])
    params = random_params(MODEL, *batch_of(0))
    state = train_state.create_train_state(params, OPTIMIZER)
    spec = step_spec.StepSpec(model=MODEL, optimizer=OPTIMIZER, seed=3, paired=True)
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    state = partitioner.shard_state(state)
    rows = []
    for i in range(2):
        state, metrics = step(state, partitioner.shard_batch(batch_of(i)))
        rows.append(jax.tree.map(float, metrics))
    return rows, jax.tree.map(np.asarray, state.params), params


def test_a_subset_of_the_terms_trains_the_same_on_several_devices():
    expected_rows, expected, before = steps(("pmap", False, 1))
    names = {name for name in expected_rows[0] if name.startswith("loss/")}
    assert names == {f"loss/{term}/tap{i}" for term in MODEL.terms for i in (0, 1)}
    assert np.abs(expected["tap_weights"] - before["tap_weights"]).min() > 1e-7
    rows, params, _ = steps(("shard_map", True, 4))
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row.keys() == expected_row.keys()
        for name, value in expected_row.items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def clip4clip(**changes) -> tuple:
    """The resolved config of the baseline, on a tiny model, and the model."""
    config = load(str(ROOT / "configs/clip4clip.py"))
    for key, value in ({"model__variant": "tiny", "train__steps": 10} | changes).items():
        override(config, key.replace("__", "."), str(value))
    config = resolve(config)
    return config, from_config(config)


def test_the_baseline_is_mean_pooling_of_the_last_tap():
    config, model = clip4clip()
    assert model.taps == (VARIANTS["tiny"].vision_layers,) == config.model.taps
    assert (model.terms, model.stages) == (("sentence_clip",), 0)
    rng = np.random.default_rng(0)
    frames = np.float32(rng.standard_normal((1, 5, 4, 32)))
    mask = np.arange(4) < np.array([[4], [1], [3], [2], [4]])
    sentence = np.float32(rng.standard_normal((6, 32)))
    text = similarity.TextFeatures(None, None, similarity.l2_normalize(sentence))
    feature = similarity.mean_clip_feature(
        similarity.l2_normalize(jnp.asarray(frames)), jnp.asarray(mask)
    )
    scores = similarity.scores(text, similarity.VideoFeatures(clip_feature=feature))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for b in range(5):
        mean = unit(unit(np.float64(frames[0, b][mask[b]])).mean(axis=0))
        np.testing.assert_allclose(scores[0, 0, :, b], unit(np.float64(sentence)) @ mean, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["none", "lstm"])
def test_the_baseline_trains(aggregation):
    config, _ = clip4clip(frames__aggregation=aggregation, optimizer__learning_rate=1e-4)
    model = from_config(config, SIZES).clone(taps=(SIZES.vision_layers,))
    params = init_params(model, 0)
    head = {"frame_aggregation"} if aggregation == "lstm" else set()
    assert set(params) == {"clip"} | head
    spec = step_spec.step_spec_from_config(config, model, examples=8)
    state = train_state.create_train_state(params, spec.optimizer)
    step = jax.jit(functools.partial(train_step, spec=spec))
    (ids, text_mask), (video, video_mask) = captions(0, 4, 6), clips(0, 4, 3)
    batch = batch_of(0)._replace(
        text_ids=ids, text_mask=text_mask, video=video, video_mask=video_mask
    )
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[2] < losses[0]  # the first update has rate 0
    assert [name for name in metrics if name.startswith("loss/")] == ["loss/sentence_clip/tap0"]

"""The optimiser against a plain NumPy implementation, tensor by tensor."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from hvp_jax.training.optimization import optimizer, param_groups, schedules, update_rules
from hvp_jax.weights import torch_params
from tests.helpers.command import GOLDEN
from tests.helpers.small import normal

SCHEDULE = json.loads((GOLDEN / "schedule.json").read_text())
LEARNING_RATE, CLIP_LEARNING_RATE, STEPS = 1e-2, 1e-3, 10

# (path, whether weight decay applies, learning rate)
TENSORS = [
    ("clip/logit_scale", True, CLIP_LEARNING_RATE),
    ("clip/visual/patch_embedding", True, 0.0),
    ("clip/visual/class_embedding", True, CLIP_LEARNING_RATE),
    ("clip/visual/norm_pre/scale", True, CLIP_LEARNING_RATE),
    ("clip/visual/norm_pre/bias", False, CLIP_LEARNING_RATE),
    ("clip/text/position_embedding", True, CLIP_LEARNING_RATE),
    ("clip/text/tower/blocks/qkv/bias", False, CLIP_LEARNING_RATE),
    ("distill/stage_0/conv/kernel", True, LEARNING_RATE),
    ("distill/stage_0/norm/scale", True, LEARNING_RATE),
    ("distill/stage_0/score/bias", False, LEARNING_RATE),
    ("word_weight/dense_0/kernel", True, LEARNING_RATE),
]


def tree_of(seed: int, scale: float = 1.0) -> dict:
    """A random array [2, 3] for each of `TENSORS`, except for the temperature, a scalar."""
    flat = {
        path: np.float32(scale * normal(seed + i, 2, 3)) for i, (path, *_) in enumerate(TENSORS)
    }
    flat["clip/logit_scale"] = flat["clip/logit_scale"][0, 0]
    return unflatten_dict(flat, sep="/")


def factor(progress: float, warmup: float = 0.1) -> float:
    return progress / warmup if progress < warmup else 0.5 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize(("float64", "tolerance"), [(True, 4e-16), (False, 4e-7)])
def test_the_schedule_matches_the_golden_values(float64, tolerance):
    progress, factors = np.transpose(SCHEDULE["warmup_cosine(warmup=0.1)"])
    steps = np.arange(len(progress), dtype=np.int32)
    np.testing.assert_allclose(steps / 40, progress, rtol=1e-15)
    with jax.enable_x64(float64):
        computed = jax.jit(lambda step: schedules.warmup_cosine(step, 40, 0.1))(steps)
        assert computed.dtype == (jnp.float64 if float64 else jnp.float32)
        np.testing.assert_allclose(computed, factors, rtol=tolerance, atol=1e-16)


@pytest.mark.parametrize(("float64", "tolerance"), [(True, 1e-12), (False, 1e-6)])
def test_every_update_of_any_schedule_has_the_factor_of_python(float64, tolerance):
    """The first update after the warm-up included, where a rounded comparison fails."""
    with jax.enable_x64(float64):
        for total in (1, 7, 30, 50, 110, 200, 330, 1000, 4990):
            for warmup in (0.0, 0.1, 0.3, 0.99):
                steps = np.arange(total, dtype=np.int32)
                schedule = functools.partial(
                    schedules.warmup_cosine, schedule_steps=total, warmup_fraction=warmup
                )
                expected = [factor(step / total, warmup) for step in steps.tolist()]
                computed = jax.jit(schedule)(steps)
                # Python's 1 + cos loses 1e-16 near the end of the schedule.
                np.testing.assert_allclose(computed, expected, rtol=tolerance, atol=2e-16)


def test_the_rate_rises_again_after_the_schedule():
    """As in the original, whose schedule may be shorter than the run."""
    assert float(schedules.warmup_cosine(jnp.int32(50), 40, 0.1)) == pytest.approx(factor(1.25))


def test_decay_and_rates_follow_the_names_of_pytorch():
    """The original decides by parts of the tensors' names; so must ours, for every tensor."""
    with np.load(GOLDEN / "pytorch_small.npz") as file:
        shapes = {
            k.removeprefix("state/"): file[k].shape for k in file.files if k.startswith("state/")
        }
    sources = torch_params.match_tensors(shapes)
    params = unflatten_dict({source.path: np.zeros(1) for source in sources}, sep="/")
    decays = flatten_dict(param_groups.weight_decay_mask(params), sep="/")
    groups = flatten_dict(param_groups.param_groups(params), sep="/")
    names = [(source.path, name) for source in sources for layer in source.layers for name in layer]
    assert len(names) == len(shapes)
    for path, name in names:
        assert decays[path] == ("bias" not in name), name
        frozen = name == "clip.visual.conv1.weight"
        assert groups[path] == ("patches" if frozen else "clip" if "clip." in name else "new"), name


def test_three_updates_match_numpy():
    params = tree_of(0)
    gradients = [tree_of(100, 3.0), tree_of(200, 0.01), tree_of(300, 3.0)]
    tx = optimizer.make_optimizer(LEARNING_RATE, CLIP_LEARNING_RATE, STEPS)
    state = tx.init(params)
    update = jax.jit(tx.update)
    expected = {path: np.float64(x) for path, x in flatten_dict(params, sep="/").items()}
    moments = {path: (0.0, 0.0) for path in expected}
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, params)
        params = optimizer.apply_updates_and_clamp(params, updates)
        flat = {path: np.float64(x) for path, x in flatten_dict(gradient, sep="/").items()}
        norm = math.sqrt(sum((g**2).sum() for g in flat.values()))
        assert (norm > 1) == (step != 1)  # the second is not clipped
        for path, decays, learning_rate in TENSORS:
            g = flat[path] * min(1 / (norm + 1e-6), 1)  # as torch.nn.utils.clip_grad_norm_
            m, v = moments[path]
            m, v = moments[path] = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
            change = m / (np.sqrt(v) + 1e-6) + 0.2 * decays * expected[path]
            expected[path] = expected[path] - learning_rate * factor(step / STEPS) * change
        updated = flatten_dict(params, sep="/")
        for path, value in expected.items():
            np.testing.assert_allclose(updated[path], value, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("norm", [0.5, 1.0, 2.0, 300.0])
def test_gradients_are_clipped_as_in_pytorch(norm):
    with jax.enable_x64(True):
        gradient = {"a": np.array([0.6, 0.0]) * norm, "b": np.array([[0.8]]) * norm}
        clip = optimizer.clip_by_known_norm(1.0)
        clipped, _ = clip.update(gradient, clip.init(gradient))
        factor = min(1 / (norm + 1e-6), 1)  # torch.nn.utils.clip_grad_norm_
        np.testing.assert_allclose(clipped["a"], gradient["a"] * factor, rtol=1e-14)
        np.testing.assert_allclose(clipped["b"], gradient["b"] * factor, rtol=1e-14)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_first_update_is_zero_and_frozen_patches_never_change(frozen):
    params, gradient = tree_of(0), tree_of(100)
    tx = optimizer.make_optimizer(LEARNING_RATE, CLIP_LEARNING_RATE, STEPS, freeze_patches=frozen)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(3):
        updates, state = update(gradient, state, params)
        sizes = {
            path: float(jnp.abs(x).max()) for path, x in flatten_dict(updates, sep="/").items()
        }
        if frozen:
            assert sizes.pop("clip/visual/patch_embedding") == 0
        assert max(sizes.values()) == 0 if step == 0 else min(sizes.values()) > 0
    clip_sizes = [size for path, size in sizes.items() if path.startswith("clip/")]
    assert max(clip_sizes) < 3 * CLIP_LEARNING_RATE < LEARNING_RATE / 2 < max(sizes.values())


def test_the_schedule_has_the_given_length():
    """With a constant gradient and no decay, m/√v is known, which leaves the factor."""
    params = {"word_weight": jnp.zeros(1), "clip": {"logit_scale": jnp.zeros(())}}
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
    tx = optimizer.make_optimizer(1.0, 1.0, 40, weight_decay=0.0, epsilon=0.0)
    state, update, factors = tx.init(params), jax.jit(tx.update), []
    for step in range(41):
        updates, state = update(gradient, state, params)
        adam = (1 - 0.9 ** (step + 1)) / math.sqrt(1 - 0.98 ** (step + 1))
        factors.append(-float(updates["word_weight"][0]) / adam)
    golden = [value for _, value in SCHEDULE["warmup_cosine(warmup=0.1)"]]
    np.testing.assert_allclose(factors, golden, atol=1e-5)


def test_the_temperature_is_clamped_after_each_update():
    params = tree_of(0)
    updates = jax.tree.map(np.zeros_like, params)
    for before, change, after in (
        (4.6, 0.2, math.log(100)),
        (4.0, 0.2, 4.2),
        (5.0, 0.0, math.log(100)),
    ):
        params["clip"]["logit_scale"] = np.float32(before)
        updates["clip"]["logit_scale"] = np.float32(change)
        updated = optimizer.apply_updates_and_clamp(params, updates)
        assert float(updated["clip"]["logit_scale"]) == pytest.approx(after, rel=1e-6)
        others = flatten_dict(updated, sep="/")
        del others["clip/logit_scale"]
        for path, x in others.items():
            np.testing.assert_array_equal(x, flatten_dict(params, sep="/")[path])


def test_moments_are_float32_even_for_bfloat16_weights():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree_of(0))
    gradient = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree_of(100, 1e-3))
    tx = optimizer.make_optimizer(LEARNING_RATE, CLIP_LEARNING_RATE, STEPS)
    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(gradient, state, params)
    (adam,) = [part for part in state if isinstance(part, update_rules.BertAdamState)]
    assert {x.dtype for x in jax.tree.leaves(adam)} == {jnp.dtype("float32")}
    assert {
        x.dtype for x in jax.tree.leaves(optimizer.apply_updates_and_clamp(params, updates))
    } == {jnp.dtype("bfloat16")}
    g = float(flatten_dict(gradient, sep="/")["distill/stage_0/norm/scale"][0, 0])
    square = 0.02 * (1 + 0.98) * g**2
    assert float(adam.nu["distill"]["stage_0"]["norm"]["scale"][0, 0]) == pytest.approx(
        square, rel=1e-3
    )


def test_a_cpu_updates_the_moments_in_place():
    """If it were chosen after the update whether to keep it, all moments would be copied."""
    kernel = {"kernel": jnp.ones((256, 256))}
    params = {"clip": {"logit_scale": jnp.ones(()), **kernel}, "new": kernel}
    adam = optimizer.make_optimizer(1e-3, 1e-3, 100)

    def step(params, state, grads):
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        updates, state = adam.update(grads, state, params, norm=norm, finite=finite)
        new = optimizer.apply_updates_and_clamp(params, updates)
        return jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, params), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, adam.init(params), params)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 256 * 256 * 4


def test_gradients_that_are_not_finite_change_no_state():
    params = {"clip": {"logit_scale": jnp.ones(()), "kernel": jnp.ones((4, 4))}}
    adam = optimizer.make_optimizer(1e-3, 1e-3, 100)
    _, state = adam.update(params, adam.init(params), params)
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    _, after = adam.update(broken, state, params, finite=jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)

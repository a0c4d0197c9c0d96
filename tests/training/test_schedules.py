"""The schedules against Python's floats; `warmup_cosine` is in test_optimizer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.config.schema import CHOICES
from hvp_jax.training.optimization import optimizer
from hvp_jax.training.optimization.schedules import AFTER_THE_END, SCHEDULES

AFTER_WARMUP = {
    "warmup_linear": lambda x, warmup: max(0.0, (1 - x) / (1 - warmup)),
    "warmup_constant": lambda x, warmup: 1.0,
}


def test_every_choice_of_the_config_is_a_schedule():
    assert tuple(SCHEDULES) == tuple(AFTER_THE_END) == CHOICES["optimizer.schedule"]


@pytest.mark.parametrize("name", AFTER_WARMUP)
@pytest.mark.parametrize(("total", "warmup"), [(40, 0.1), (7, 0.0), (330, 0.3)])
def test_every_update_has_the_factor_of_python(name, total, warmup):
    steps = np.arange(total + 5, dtype=np.int32)
    expected = [
        x / warmup if x < warmup else AFTER_WARMUP[name](x, warmup)
        for x in (steps / total).tolist()
    ]
    computed = jax.jit(lambda step: SCHEDULES[name](step, total, warmup))(steps)
    np.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_optimizer_scales_its_updates_by_its_schedule(name):
    """With Lion and no decay an update is the learning rate, times the factor."""
    params = {"word_weight": jnp.zeros(1), "clip": {"logit_scale": jnp.zeros(())}}
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
    tx = optimizer.make_optimizer(1.0, 1.0, 10, name="lion", schedule=name, weight_decay=0.0)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(12):
        factor = float(SCHEDULES[name](jnp.int32(step), 10, 0.1))
        assert float(tx.lr_factor(state)) == pytest.approx(factor, abs=1e-7)
        updates, state = update(gradient, state, params)
        assert -float(updates["word_weight"][0]) == pytest.approx(factor, abs=1e-6)

"""The contrastive loss against a cross-entropy computed row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import losses
from tests.helpers.small import normal

TERMS = ("word_patch", "sentence_patch", "sentence_frame")


def cross_entropy(logits: np.ndarray) -> float:
    """Mean of -log softmax at the diagonal, over the rows."""
    total = 0.0
    for i, row in enumerate(logits):
        total -= np.log(np.exp(row[i] - row.max()) / np.exp(row - row.max()).sum())
    return total / len(logits)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_info_nce_sums_both_directions(size):
    logits = 3 * normal(0, 2, size, size)
    expected = [cross_entropy(x) + cross_entropy(x.T) for x in logits]
    np.testing.assert_allclose(losses.info_nce(jnp.asarray(logits)), expected, rtol=1e-5, atol=1e-6)


def test_terms_and_taps_are_summed_not_averaged():
    scores, log_scale = normal(1, 3, 2, 4, 4), 1.3
    parts = {}
    for term, term_scores in zip(TERMS, scores, strict=True):
        for tap, logits in enumerate(np.exp(log_scale) * term_scores):
            parts[f"{term}/tap{tap}"] = cross_entropy(logits) + cross_entropy(logits.T)
    loss, named = losses.contrastive(jnp.asarray(scores), jnp.asarray(log_scale))
    assert {name: float(x) for name, x in named.items()} == pytest.approx(parts, rel=1e-5)
    assert float(loss) == pytest.approx(sum(parts.values()), rel=1e-5)


def test_the_loss_of_equal_scores_is_the_logarithm_of_the_batch_size():
    loss, _ = losses.contrastive(jnp.zeros((3, 1, 8, 8)), jnp.asarray(2.0))
    assert float(loss) == pytest.approx(3 * 2 * np.log(8))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_stay_finite(size):
    scores = size * jnp.eye(4)[None, None].repeat(3, 0)
    loss_and_grad = jax.jit(
        jax.value_and_grad(lambda x: losses.contrastive(x, jnp.asarray(4.6))[0])
    )
    loss, gradient = loss_and_grad(scores)
    assert jnp.isfinite(loss) and jnp.isfinite(gradient).all()
    assert loss < 1 if size > 0 else loss > 1e4  # float32 resolves 0.06 at 1e6

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


CLIP_IDS = np.array([4, 1, 4, 2, 0, 1, 4, 7], np.int32)  # examples 0, 2, 6 and 1, 5 meet


def contrast(logits: np.ndarray, ids: np.ndarray, same_video: str) -> float:
    """The mean over rows, row by row, of what the row's own caption or captions are to it."""
    total = 0.0
    for i, row in enumerate(logits):
        same = ids == ids[i]
        if same_video == "positive":
            total += np.mean([np.log(np.exp(row).sum()) - row[j] for j in np.flatnonzero(same)])
            continue
        others = ~same if same_video == "ignored" else np.arange(len(row)) != i
        total += np.log(np.exp(row[i]) + np.exp(row[others]).sum()) - row[i]
    return total / len(logits)


@pytest.mark.parametrize("form", ["per_term", "summed_score"])
@pytest.mark.parametrize("same_video", ["negative", "ignored", "positive"])
def test_each_form_and_role_of_the_same_video_matches_numpy(form, same_video):
    scores, log_scale = normal(2, 3, 2, 8, 8), 0.7
    terms = np.exp(log_scale) * scores.reshape(-1, 8, 8)
    terms = terms.sum(0, keepdims=True) if form == "summed_score" else terms
    expected = [
        contrast(x, CLIP_IDS, same_video) + contrast(x.T, CLIP_IDS, same_video) for x in terms
    ]
    loss, parts = losses.contrastive(
        jnp.asarray(scores), jnp.asarray(log_scale),
        form=form, same_video=same_video, clip_ids=jnp.asarray(CLIP_IDS),
    )  # fmt: skip
    assert float(loss) == pytest.approx(sum(expected), rel=1e-5)
    if form == "summed_score":
        assert parts == {}
    else:
        assert list(parts.values()) == pytest.approx(expected, rel=1e-5)


def loss_and_grad(scores, ids, axis=None, **fields):
    """Of `contrastive` with a temperature; sharded by columns over all devices with an `axis`."""

    def loss(scores, ids):
        return losses.contrastive(scores, jnp.float32(1.1), axis, clip_ids=ids, **fields)[0]

    if axis is None:
        return jax.jit(jax.value_and_grad(loss))(scores, ids)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (axis,))
    spec = jax.sharding.PartitionSpec
    columns = spec(None, None, None, axis)

    def shard(scores, ids):
        value, gradient = jax.value_and_grad(loss)(scores, ids)
        # Every device has the gradient of the sum of all devices' equal losses.
        return value, gradient / jax.lax.axis_size(axis)

    return jax.jit(
        jax.shard_map(
            shard,
            mesh=mesh,
            in_specs=(columns, spec(axis)),
            out_specs=(spec(), columns),
            check_vma=False,
        )
    )(scores, ids)


@pytest.mark.parametrize("form", ["per_term", "summed_score"])
@pytest.mark.parametrize("same_video", ["negative", "ignored", "positive"])
def test_eight_devices_with_their_columns_give_the_loss_of_one(form, same_video):
    scores, ids = jnp.float32(normal(3, 3, 2, 8, 8)), jnp.asarray(CLIP_IDS)
    fields = {"form": form, "same_video": same_video}
    loss, gradient = loss_and_grad(scores, ids, **fields)
    sharded_loss, sharded_gradient = loss_and_grad(scores, ids, "batch", **fields)
    assert float(sharded_loss) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(sharded_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_the_role_of_the_same_video_matters_where_captions_of_one_clip_meet_and_only_there():
    scores = jnp.float32(normal(4, 3, 1, 8, 8))
    roles = ("negative", "ignored", "positive")
    met = {r: loss_and_grad(scores, jnp.asarray(CLIP_IDS), same_video=r) for r in roles}
    alone = {r: loss_and_grad(scores, jnp.arange(8), same_video=r) for r in roles}
    for role in roles[1:]:
        assert abs(float(met[role][0] - met["negative"][0])) > 0.1
        assert float(alone[role][0]) == pytest.approx(float(alone["negative"][0]), rel=1e-6)
        np.testing.assert_allclose(alone[role][1], alone["negative"][1], atol=1e-6)
    same = (CLIP_IDS[:, None] == CLIP_IDS) & ~np.eye(8, dtype=bool)
    gradients = {role: np.asarray(met[role][1])[:, :, same] for role in roles}
    assert (gradients["negative"] > 0).all()  # the scores of captions of the clip are pushed down
    assert (gradients["ignored"] == 0).all()
    assert (gradients["positive"] < gradients["negative"]).all()  # and here pulled up


def test_the_loss_of_the_summed_score_has_one_softmax_instead_of_one_for_each_term():
    def cost(form):
        compiled = jax.jit(lambda x: losses.contrastive(x, 1.0 * x[0, 0, 0, 0], form=form)[0])
        shape = jax.ShapeDtypeStruct((3, 4, 64, 64), jnp.float32)
        return compiled.lower(shape).compile().cost_analysis()["transcendentals"]

    assert cost("summed_score") < cost("per_term") / 8

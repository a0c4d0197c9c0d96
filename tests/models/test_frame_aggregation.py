"""CLIP4Clip's heads on the frames: where training starts, NumPy's numbers, padding, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import flops
from hvp_jax.models.frame_aggregation import LAYERS, FrameAggregation
from hvp_jax.models.hvpnet import init_params
from tests.helpers.small import SIZES, normal, random_params
from tests.models.test_head import batch_of, model_of, params_of, run

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH, FRAMES = SIZES.embed_dim, 5
COUNT = np.array([5, 3, 1])
VALID = np.arange(FRAMES) < COUNT[:, None]
FRAME_TERMS = ("sentence_frame", "sentence_clip")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def numpy_lstm(x: np.ndarray, cell: dict) -> np.ndarray:
    """[T, D] -> [T, D]."""
    c, h, out = np.zeros(x.shape[1]), np.zeros(x.shape[1]), []
    for frame in x:
        gate = {
            g: frame @ cell[f"i{g}"]["kernel"] + h @ cell[f"h{g}"]["kernel"] + cell[f"h{g}"]["bias"]
            for g in "ifgo"
        }
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        out.append(h)
    return np.array(out)


def numpy_transformer(x: np.ndarray, params: dict) -> np.ndarray:
    """[T, D] -> [T, D]; one head, as the width is less than CLIP's 64."""

    def norm(x, p):
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * p[
            "scale"
        ] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    x = x + params["position_embedding"][: len(x)]
    for i in range(LAYERS):
        p = jax.tree.map(lambda w, i=i: w[i], params["tower"]["blocks"])
        query, key, value = np.split(dense(norm(x, p["norm_1"]), p["qkv"]), 3, axis=1)
        weights = np.exp(query @ key.T / np.sqrt(x.shape[1]))
        weights /= weights.sum(1, keepdims=True)
        x = x + dense(weights @ value, p["attention_out"])
        hidden = dense(norm(x, p["norm_2"]), p["mlp_in"])
        x = x + dense(hidden * sigmoid(1.702 * hidden), p["mlp_out"])
    return x


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_the_valid_frames_equal_numpy_and_do_not_see_the_padding(kind):
    module = FrameAggregation(kind=kind, config=SIZES, remat="none", dtype=jnp.float32)
    x = np.float32(normal(0, 3, FRAMES, WIDTH))
    params = random_params(module, x, VALID)
    y = jax.jit(module.apply)({"params": params}, x, VALID)
    params = jax.tree.map(np.float64, params)
    for b, n in enumerate(COUNT):
        if kind == "lstm":
            inner = numpy_lstm(np.float64(x[b, :n]), params["lstm"])
        else:
            inner = numpy_transformer(np.float64(x[b, :n]), params)
        expected = x[b, :n] + inner @ params["out"]["kernel"] + params["out"]["bias"]
        np.testing.assert_allclose(y[b, :n], expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_training_starts_from_the_frames_as_they_are(kind):
    plain, model = (model_of(terms=FRAME_TERMS, aggregation=k) for k in ("none", kind))
    start = init_params(model, 0)
    assert set(start) == {"clip", "frame_weight", "frame_aggregation"}
    scores = run(plain, {name: start[name] for name in ("clip", "frame_weight")})[0]
    np.testing.assert_array_equal(run(model, start)[0], scores)
    params = params_of(model)
    changed = run(model, params)[0]
    own = {name: params[name] for name in ("clip", "frame_weight")}
    assert np.abs(changed - run(plain, own)[0]).max(axis=(1, 2, 3)).min() > 1e-3
    longer = run(model, params, batch_of(padding=2))[0]
    np.testing.assert_allclose(longer, changed, atol=1e-5)
    counts = [flops.training_step(m, 4, 3, 6) for m in (plain, model)]
    assert counts[1] > counts[0]


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_terms_without_frames_have_no_aggregation(kind):
    model = model_of(terms=("sentence_patch",), aggregation=kind)
    assert "frame_aggregation" not in params_of(model)
    assert flops.training_step(model, 4, 3, 6) == flops.training_step(
        model_of(terms=("sentence_patch",)), 4, 3, 6
    )

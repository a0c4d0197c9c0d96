"""The towers against a numpy implementation, block by block."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import clip, layers
from hvp_jax.models.tower.tower import REMAT, Tower
from tests.helpers.small import normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

WIDTH, LAYERS = 128, 3  # two heads
TAPS = (1, 3)


def numpy_norm(x: np.ndarray, params: dict) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]


def numpy_attention(query, key, value, bias=None) -> np.ndarray:
    """Query [N, Q, H, d], key and value [N, S, H, d], bias [N, 1, Q, S], head by head."""
    out = np.zeros(query.shape)
    for n in range(query.shape[0]):
        for h in range(query.shape[2]):
            logits = query[n, :, h] @ key[n, :, h].T / np.sqrt(query.shape[3])
            if bias is not None:
                logits = logits + bias[n, 0]
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[n, :, h] = weights / weights.sum(-1, keepdims=True) @ value[n, :, h]
    return out


def numpy_block(x: np.ndarray, params: dict, bias=None) -> np.ndarray:
    """Pre-norm attention, then a pre-norm MLP of four times the width with QuickGELU."""

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    y = dense(numpy_norm(x, params["norm_1"]), "qkv")
    heads = [part.reshape(*x.shape[:2], -1, 64) for part in np.split(y, 3, axis=-1)]
    x = x + dense(numpy_attention(*heads, bias).reshape(x.shape), "attention_out")
    y = dense(numpy_norm(x, params["norm_2"]), "mlp_in")
    return x + dense(y / (1 + np.exp(-1.702 * y)), "mlp_out")


def tower(remat: str = "none", dtype=jnp.float32) -> Tower:
    return Tower(
        width=WIDTH,
        head_dim=64,
        mlp_dim=None,
        layers=LAYERS,
        taps=TAPS,
        activation="quick_gelu",
        remat=remat,
        dtype=dtype,
    )


def test_attention_in_float64_stays_in_float64():
    query, key, value = normal(0, 2, 5, 2, 64), normal(1, 2, 7, 2, 64), normal(2, 2, 7, 2, 64)
    bias = np.where(normal(3, 2, 1, 5, 7) > 1, -np.inf, normal(4, 2, 1, 5, 7))
    with jax.enable_x64(True):
        ours = layers.attention(*map(jnp.asarray, (query, key, value, bias)))
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, numpy_attention(query, key, value, bias), atol=1e-12)


def test_attention_in_bfloat16_computes_its_softmax_in_float32():
    query, key, value = (jnp.asarray(normal(i, 1, 3, 1, 64), jnp.bfloat16) for i in range(3))
    jaxpr = str(jax.make_jaxpr(layers.attention)(query, key, value))
    exponentials = [line for line in jaxpr.splitlines() if " = exp " in line]
    assert exponentials and all("f32" in line for line in exponentials)
    assert layers.attention(query, key, value).dtype == jnp.bfloat16


def test_taps_are_the_hidden_states_of_a_loop_over_blocks():
    x = normal(0, 2, 5, WIDTH)
    causal = np.where(np.tril(np.ones((5, 5), bool)), 0.0, -np.inf)
    bias = np.broadcast_to(causal, (2, 1, 5, 5))
    with jax.enable_x64(True):
        module = tower(dtype=jnp.float64)
        params = random_params(module, x, bias)
        taps = jax.jit(module.apply)({"params": params}, x, bias)
    assert taps.shape == (2, 2, 5, WIDTH)
    states = []
    for i in range(LAYERS):
        x = numpy_block(x, jax.tree.map(lambda p, i=i: np.asarray(p[i]), params["blocks"]), bias)
        states.append(x)
    for ours, layer in zip(taps, TAPS, strict=True):
        np.testing.assert_allclose(ours, states[layer - 1], rtol=1e-10, atol=1e-10)


def test_every_remat_policy_gives_the_same_values_and_gradients():
    x = normal(0, 2, 5, WIDTH).astype(np.float32)
    probe = normal(1, 2, 2, 5, WIDTH).astype(np.float32)
    params = random_params(tower(), x)
    results = {}
    for remat in REMAT:
        module = tower(remat)

        def weighted_sum(params, x, module=module):
            return (module.apply({"params": params}, x) * probe).sum()

        jaxpr = str(jax.make_jaxpr(weighted_sum)(params, x))
        assert ("checkpoint" in jaxpr or "remat" in jaxpr) == (remat != "none")
        results[remat] = jax.jit(jax.value_and_grad(weighted_sum, argnums=(0, 1)))(params, x)
    value, (params_grad, x_grad) = results["none"]
    assert all(jnp.abs(g).max() > 1e-3 for g in jax.tree.leaves(params_grad["blocks"]["mlp_in"]))
    for remat in ("dots", "full"):
        ours = results[remat]
        np.testing.assert_allclose(ours[0], value, rtol=1e-5)
        np.testing.assert_allclose(ours[1][1], x_grad, atol=1e-5)
        for a, b in zip(jax.tree.leaves(ours[1][0]), jax.tree.leaves(params_grad), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-6)


@pytest.fixture(scope="module")
def text():
    module = clip.TextTransformer(
        context_length=16, vocab_size=50, width=64, layers=2, embed_dim=32
    )
    ids = np.array([[48, 3, 7, 49, 0], [48, 9, 49, 0, 0]])
    params = random_params(module, jnp.asarray(ids), jnp.asarray(ids > 0))
    encode = jax.jit(module.apply)
    return ids, lambda ids, mask: encode({"params": params}, jnp.asarray(ids), jnp.asarray(mask))


def test_padding_a_caption_does_not_change_words_or_sentence(text):
    ids, encode = text
    mask = ids > 0
    words, sentence = encode(ids, mask)
    longer, longer_sentence = encode(np.pad(ids, [(0, 0), (0, 4)]), np.pad(mask, [(0, 0), (0, 4)]))
    assert words.shape == (2, 5, 32) and longer.shape == (2, 9, 32)
    np.testing.assert_allclose(longer[:, :5][mask], words[mask], atol=1e-6)
    np.testing.assert_allclose(longer_sentence, sentence, atol=1e-6)
    np.testing.assert_allclose(sentence, words[[0, 1], [3, 2]], atol=1e-6)  # end of text


def test_a_word_attends_to_no_later_word_and_no_padding(text):
    ids, encode = text
    words, _ = encode(ids, ids > 0)
    other = ids.copy()
    other[0, 2] = 20
    changed = np.abs(encode(other, ids > 0)[0] - words).max(-1)
    assert changed[0, :2].max() < 1e-6 and changed[0, 2:].min() > 1e-3 and changed[1].max() < 1e-6
    # No later position attends to a padding token either.
    other = ids.copy()
    other[1, 3] = 20
    changed = np.abs(encode(other, ids > 0)[0] - words).max(-1)
    assert changed[1, 3] > 1e-3 and np.delete(changed[1], 3).max() < 1e-6


def test_an_empty_caption_stays_finite(text):
    ids, encode = text
    words, sentence = encode(ids, np.zeros_like(ids, bool))
    assert jnp.isfinite(words).all() and jnp.isfinite(sentence).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_only_the_patch_embedding_is_frozen(frozen):
    module = clip.VisionTransformer(
        image_size=32,
        patch_size=16,
        width=64,
        layers=2,
        embed_dim=32,
        taps=(1, 2),
        freeze_patches=frozen,
    )
    inputs = jnp.float32(normal(0, 2, 32, 96)), jnp.ones(2, bool)
    params = random_params(module, *inputs)
    probe = normal(1, 2, 2, 5, 32).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        return (module.apply({"params": params}, *inputs) * probe).sum()

    flat = jax.tree_util.tree_flatten_with_path(gradient(params))[0]
    greatest = {jax.tree_util.keystr(path): float(jnp.abs(g).max()) for path, g in flat}
    if frozen:
        assert greatest.pop("['patch_embedding']") == 0
    assert min(greatest.values()) > 1e-4


def test_patches_are_in_row_order_after_the_class_token():
    """Without attention and MLP, changing one patch changes only that patch's token."""
    module = clip.VisionTransformer(
        image_size=48, patch_size=16, width=64, layers=1, embed_dim=32, taps=(1,)
    )
    pixels = np.zeros((2, 48, 48, 3), np.float32)
    pixels[1, 16:32, 32:48] = normal(0, 16, 16, 3)  # row 1, column 2 of 3 x 3
    inputs = pixels.reshape(2, 48, -1), np.ones(2, bool)
    params = random_params(module, *inputs)
    for name in ("attention_out", "mlp_out"):
        params["tower"]["blocks"][name] = jax.tree.map(
            np.zeros_like, params["tower"]["blocks"][name]
        )
    (tokens,) = jax.jit(module.apply)({"params": params}, *inputs)
    change = np.abs(tokens[1] - tokens[0]).max(-1)
    assert np.flatnonzero(change > 1e-6).tolist() == [1 + 3 * 1 + 2]


def test_the_two_activations_match_their_formulas_and_differ():
    x = np.linspace(-4, 4, 33)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    with jax.enable_x64(True):
        np.testing.assert_allclose(layers.ACTIVATIONS["gelu"](jnp.asarray(x)), exact, atol=1e-12)
        quick = layers.ACTIVATIONS["quick_gelu"](jnp.asarray(x))
        np.testing.assert_allclose(quick, x / (1 + np.exp(-1.702 * x)), atol=1e-12)
    y, outputs = normal(0, 1, 3, 64).astype(np.float32), {}
    for name in layers.ACTIVATIONS:
        module = Tower(
            width=64,
            head_dim=64,
            mlp_dim=None,
            layers=1,
            taps=(1,),
            activation=name,
            remat="none",
            dtype=jnp.float32,
        )
        params = random_params(module, y)
        outputs[name] = jax.jit(module.apply)({"params": params}, y)
    assert jnp.abs(outputs["gelu"] - outputs["quick_gelu"]).max() > 1e-4

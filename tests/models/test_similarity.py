"""The three scores against the formulas, term by term, on every pair of tokens."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import similarity
from tests.helpers.small import normal

pytestmark = pytest.mark.usefixtures("quick_compile")

TEXTS, WORDS, CLIPS, TOKENS, WIDTH = 7, 4, 5, 3, 8


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def naive(words, word_weights, patches, patch_weights, paired: bool):
    """The formula as it stands, over one array [A, W, C, M]; numpy or jax arrays."""
    cosine = (words[:, :, None, None] * patches[None, None]).sum(-1)
    of_words = cosine.max(3)  # [A, W, C]
    weights = word_weights.T[None] if paired else word_weights[:, :, None]
    return ((of_words * weights).sum(1) + (cosine.max(1) * patch_weights).sum(2)) / 2


@pytest.fixture(scope="module")
def sides():
    words, patches = unit(normal(0, TEXTS, WORDS, WIDTH)), unit(normal(1, CLIPS, TOKENS, WIDTH))
    of_texts, of_clips = normal(2, TEXTS, WORDS), normal(3, CLIPS, WORDS)
    return words, {False: of_texts, True: of_clips}, patches, normal(4, CLIPS, TOKENS)


@pytest.mark.parametrize("paired", [False, True])
def test_word_patch_equals_the_formula_in_any_chunks(sides, paired):
    words, word_weights, patches, patch_weights = sides
    arguments = (words, word_weights[paired], patches, patch_weights)
    formula = naive(*arguments, paired)
    single = [np.float32(x) for x in arguments]
    for text_chunk, clip_chunk in ((48, 16), (1, 1), (2, 3), (7, 5), (3, 16), (4, 2)):
        ours = similarity.word_patch(*single, paired, text_chunk, clip_chunk)
        assert ours.shape == (TEXTS, CLIPS)
        np.testing.assert_allclose(ours, formula, atol=2e-6)


@pytest.mark.parametrize("paired", [False, True])
def test_the_gradient_in_chunks_is_that_of_the_formula(sides, paired):
    words, word_weights, patches, patch_weights = sides
    probe = normal(5, TEXTS, CLIPS)
    arguments = [np.float32(x) for x in (words, word_weights[paired], patches, patch_weights)]

    def chunked(*x):
        return (similarity.word_patch(*x, paired, 3, 2) * probe).sum()

    def whole(*x):
        return (naive(*x, paired) * probe).sum()

    ours = jax.jit(jax.grad(chunked, argnums=(0, 1, 2, 3)))(*arguments)
    expected = jax.jit(jax.grad(whole, argnums=(0, 1, 2, 3)))(*arguments)
    for a, b in zip(ours, expected, strict=True):
        assert jnp.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, atol=1e-5)


def arrays_of(jaxpr) -> list[tuple[int, ...]]:
    """The shape of every array that a jaxpr computes, at any depth."""
    shapes = []
    for equation in jaxpr.eqns:
        shapes += [v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape")]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            shapes += arrays_of(inner)
    return shapes


@pytest.mark.parametrize("paired", [False, True])
def test_no_array_of_every_pair_of_tokens_is_ever_built(paired):
    texts, words, clips, tokens, width = 32, 8, 48, 6, 4
    arguments = [
        np.zeros(shape, np.float32)
        for shape in (
            (texts, words, width),
            (clips if paired else texts, words),
            (clips, tokens, width),
            (clips, tokens),
        )
    ]

    def total(*x):
        return similarity.word_patch(*x, paired, text_chunk=8, clip_chunk=6).sum()

    whole, tile = texts * words * clips * tokens, 8 * words * 6 * tokens
    for function in (total, jax.value_and_grad(total, argnums=(0, 1, 2, 3))):
        sizes = [
            int(np.prod(shape)) for shape in arrays_of(jax.make_jaxpr(function)(*arguments).jaxpr)
        ]
        assert max(sizes) == tile
    # What the check is worth: the formula as it stands fails it.
    plain = jax.make_jaxpr(lambda *x: naive(*x, paired))(*arguments).jaxpr
    assert max(int(np.prod(shape)) for shape in arrays_of(plain)) >= whole


def test_the_tiles_are_the_fewest_and_evenest():
    x = normal(0, 10, 2)
    tiles = similarity._tiles(jnp.asarray(x, jnp.float32), 4)
    assert tiles.shape == (3, 4, 2)
    np.testing.assert_allclose(tiles.reshape(-1, 2)[:10], x, rtol=1e-6)
    assert similarity._tiles(jnp.asarray(x), 48).shape == (1, 10, 2)
    assert similarity._tiles(jnp.asarray(x), 9).shape == (2, 5, 2)


def test_padded_tokens_change_no_score_and_no_gradient(sides):
    words, weights, patches, patch_weights = sides
    raw = [np.float32(x) for x in (words, weights[False], patches, patch_weights)]
    probe = normal(5, TEXTS, CLIPS)
    valid_words = np.arange(WORDS + 2) < np.full((TEXTS, 1), WORDS)
    valid_tokens = np.arange(TOKENS + 3) < np.full((CLIPS, 1), TOKENS)

    def pad(x, number):
        return np.concatenate([x, np.float32(9 * normal(8, len(x), number, *x.shape[2:]))], axis=1)

    padded = [pad(raw[0], 2), pad(raw[1], 2), pad(raw[2], 3), pad(raw[3], 3)]

    def score(words, word_raw, patches, patch_raw, valid_words, valid_tokens):
        table = similarity.word_patch(
            similarity.pad_with_first_token(similarity.l2_normalize(words), valid_words),
            similarity.normalize_token_weights(word_raw, valid_words, "softmax"),
            similarity.pad_with_first_token(similarity.l2_normalize(patches), valid_tokens),
            similarity.normalize_token_weights(patch_raw, valid_tokens, "softmax"),
        )
        return (table * probe).sum(), table

    run = jax.jit(jax.grad(score, argnums=(0, 1, 2, 3), has_aux=True))
    expected, table = run(*raw, np.ones((TEXTS, WORDS), bool), np.ones((CLIPS, TOKENS), bool))
    found, padded_table = run(*padded, valid_words, valid_tokens)
    np.testing.assert_allclose(padded_table, table, atol=1e-6)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[:, : b.shape[1]], b, atol=2e-6)
        assert (a[:, b.shape[1] :] == 0).all()


def test_token_weights():
    raw = np.float32([[1, 2, 3, 50], [-1, 0, 4, 2], [300, -300, 1, 1]])
    valid = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    none = similarity.normalize_token_weights(jnp.asarray(raw), valid, "none")
    np.testing.assert_array_equal(none, np.where(valid, raw, 0))
    soft = similarity.normalize_token_weights(jnp.asarray(raw), valid, "softmax")
    for ours, row, kept in zip(soft, raw.astype(float), valid, strict=True):
        weights = np.exp(row[kept] - row[kept].max())
        np.testing.assert_allclose(ours[kept], weights / weights.sum(), rtol=1e-6, atol=1e-30)
        assert (ours[~kept] == 0).all()
    nothing = similarity.normalize_token_weights(jnp.asarray(raw), np.zeros_like(valid), "softmax")
    assert (nothing == 0).all()
    half = similarity.normalize_token_weights(jnp.asarray(raw, jnp.bfloat16), valid, "softmax")
    assert half.dtype == jnp.float32


def test_unit_leaves_0_at_0_also_in_the_gradient():
    x = np.float32([[3, 4, 0], [0, 0, 0]])
    value, gradient = jax.value_and_grad(lambda x: similarity.l2_normalize(x)[:, 0].sum())(x)
    assert value == pytest.approx(0.6)
    np.testing.assert_allclose(gradient, [[16 / 125, -12 / 125, 0], [0, 0, 0]], atol=1e-6)
    assert similarity.l2_normalize(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("paired", [False, True])
def test_all_terms_equal_the_long_formulas(sides, paired):
    """[3 terms, taps, A, B] of loops over texts, clips and taps."""
    taps, frames = 2, 4
    words, word_weights, _, _ = sides
    sentence = unit(normal(6, TEXTS, WIDTH))
    patches, frame = (
        unit(normal(7, CLIPS, taps, TOKENS, WIDTH)),
        unit(normal(8, CLIPS, taps, frames, WIDTH)),
    )
    patch_weights, frame_weights = normal(9, CLIPS, taps, TOKENS), normal(10, CLIPS, taps, frames)
    expected = np.zeros((3, taps, TEXTS, CLIPS))
    for a, b, tap in np.ndindex(TEXTS, CLIPS, taps):
        cosine = words[a] @ patches[b, tap].T  # [W, M]
        weights = word_weights[True][b] if paired else word_weights[False][a]
        expected[0, tap, a, b] = sum(weights * cosine.max(1)) / 2
        expected[0, tap, a, b] += sum(patch_weights[b, tap] * cosine.max(0)) / 2
        expected[1, tap, a, b] = sum(patch_weights[b, tap] * (patches[b, tap] @ sentence[a]))
        expected[2, tap, a, b] = sum(frame_weights[b, tap] * (frame[b, tap] @ sentence[a]))
    text = similarity.TextFeatures(words, word_weights[False], sentence)
    video = similarity.VideoFeatures(
        patches,
        patch_weights,
        np.einsum("blm,blmd->bld", patch_weights, patches),
        np.einsum("blf,blfd->bld", frame_weights, frame),
    )
    text, video = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (text, video))
    leak = jnp.asarray(word_weights[True], jnp.float32) if paired else None
    for chunk in (16, 3):
        ours = similarity.scores(text, video, leak, chunk)
        np.testing.assert_allclose(ours, expected, atol=5e-6)

"""The three scores against the formulas, term by term, over all pairs of tokens."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from hvp_jax.models import score_weights, similarity
from tests.helpers.small import normal

pytestmark = pytest.mark.usefixtures("quick_compile")

TEXTS, WORDS, CLIPS, TOKENS, WIDTH = 7, 4, 5, 3, 8


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def naive(words, word_weights, patches, patch_weights, paired: bool):
    """The formula, evaluated with one array [A, W, C, M]; numpy or jax arrays."""
    cosine = (words[:, :, None, None] * patches[None, None]).sum(-1)
    best_patch = cosine.max(3)  # [A, W, C]
    weights = word_weights.T[None] if paired else word_weights[:, :, None]
    return ((best_patch * weights).sum(1) + (cosine.max(1) * patch_weights).sum(2)) / 2


@pytest.fixture(scope="module")
def sides():
    """Words, their weights by `paired`, patches and their weights."""
    words, patches = unit(normal(0, TEXTS, WORDS, WIDTH)), unit(normal(1, CLIPS, TOKENS, WIDTH))
    word_weights = {False: normal(2, TEXTS, WORDS), True: normal(3, CLIPS, WORDS)}
    return words, word_weights, patches, normal(4, CLIPS, TOKENS)


@pytest.mark.parametrize("paired", [False, True])
def test_word_patch_equals_the_formula_for_all_chunk_sizes(sides, paired):
    words, word_weights, patches, patch_weights = sides
    arguments = (words, word_weights[paired], patches, patch_weights)
    formula = naive(*arguments, paired)
    single = [jnp.float32(x) for x in arguments]
    for text_chunk, clip_chunk in ((48, 16), (1, 1), (2, 3), (7, 5), (3, 16), (4, 2)):
        ours = similarity.word_patch(
            *single, paired=paired, text_chunk=text_chunk, clip_chunk=clip_chunk
        )
        assert ours.shape == (TEXTS, CLIPS)
        np.testing.assert_allclose(ours, formula, atol=2e-6)


@pytest.mark.parametrize("paired", [False, True])
def test_the_gradient_in_chunks_equals_that_of_the_formula(sides, paired):
    words, word_weights, patches, patch_weights = sides
    probe = normal(5, TEXTS, CLIPS)
    arguments = [np.float32(x) for x in (words, word_weights[paired], patches, patch_weights)]

    def chunked(*x):
        scores = similarity.word_patch(*x, paired=paired, text_chunk=3, clip_chunk=2)
        return (scores * probe).sum()

    def unchunked(*x):
        return (naive(*x, paired) * probe).sum()

    ours = jax.jit(jax.grad(chunked, argnums=(0, 1, 2, 3)))(*arguments)
    expected = jax.jit(jax.grad(unchunked, argnums=(0, 1, 2, 3)))(*arguments)
    for a, b in zip(ours, expected, strict=True):
        assert jnp.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, atol=1e-5)


def intermediate_shapes(jaxpr) -> list[tuple[int, ...]]:
    """The shape of every array that a jaxpr computes, including nested jaxprs."""
    shapes = []
    for equation in jaxpr.eqns:
        shapes += [v.aval.shape for v in equation.outvars if hasattr(v.aval, "shape")]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            shapes += intermediate_shapes(inner)
    return shapes


@pytest.mark.parametrize("paired", [False, True])
def test_no_array_of_all_token_pairs_is_computed(paired):
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
        return similarity.word_patch(*x, paired=paired, text_chunk=8, clip_chunk=6).sum()

    all_pairs, tile = texts * words * clips * tokens, 8 * words * 6 * tokens
    for function in (total, jax.value_and_grad(total, argnums=(0, 1, 2, 3))):
        shapes = intermediate_shapes(jax.make_jaxpr(function)(*arguments).jaxpr)
        assert max(int(np.prod(shape)) for shape in shapes) == tile
    # The check detects the formula without chunks.
    plain = jax.make_jaxpr(lambda *x: naive(*x, paired))(*arguments).jaxpr
    assert max(int(np.prod(shape)) for shape in intermediate_shapes(plain)) >= all_pairs


def test_tiles_are_few_and_of_equal_size():
    x = normal(0, 10, 2)
    tiles = similarity._tiles(jnp.asarray(x, jnp.float32), 4)
    assert tiles.shape == (3, 4, 2)
    np.testing.assert_allclose(tiles.reshape(-1, 2)[:10], x, rtol=1e-6)
    assert similarity._tiles(jnp.asarray(x), 48).shape == (1, 10, 2)
    assert similarity._tiles(jnp.asarray(x), 9).shape == (2, 5, 2)


def test_padding_tokens_change_neither_scores_nor_gradients(sides):
    words, weights, patches, patch_weights = sides
    raw = [np.float32(x) for x in (words, weights[False], patches, patch_weights)]
    probe = normal(5, TEXTS, CLIPS)
    valid_words = np.arange(WORDS + 2) < np.full((TEXTS, 1), WORDS)
    valid_tokens = np.arange(TOKENS + 3) < np.full((CLIPS, 1), TOKENS)

    def pad(x, number):
        return np.concatenate([x, np.float32(9 * normal(8, len(x), number, *x.shape[2:]))], axis=1)

    padded = [pad(raw[0], 2), pad(raw[1], 2), pad(raw[2], 3), pad(raw[3], 3)]

    def score(words, word_raw, patches, patch_raw, valid_words, valid_tokens):
        scores = similarity.word_patch(
            similarity.pad_with_first_token(similarity.l2_normalize(words), valid_words),
            score_weights.normalize_token_weights(word_raw, valid_words, "softmax"),
            similarity.pad_with_first_token(similarity.l2_normalize(patches), valid_tokens),
            score_weights.normalize_token_weights(patch_raw, valid_tokens, "softmax"),
        )
        return (scores * probe).sum(), scores

    run = jax.jit(jax.grad(score, argnums=(0, 1, 2, 3), has_aux=True))
    expected, scores = run(*raw, np.ones((TEXTS, WORDS), bool), np.ones((CLIPS, TOKENS), bool))
    gradients, padded_scores = run(*padded, valid_words, valid_tokens)
    np.testing.assert_allclose(padded_scores, scores, atol=1e-6)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a[:, : b.shape[1]], b, atol=2e-6)
        assert (a[:, b.shape[1] :] == 0).all()


def test_token_weights_are_normalised_over_the_valid_tokens():
    raw = np.float32([[1, 2, 3, 50], [-1, 0, 4, 2], [300, -300, 1, 1]])
    valid = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    normalize = score_weights.normalize_token_weights
    none = normalize(jnp.asarray(raw), jnp.asarray(valid), "none")
    np.testing.assert_array_equal(none, np.where(valid, raw, 0))
    softmax = normalize(jnp.asarray(raw), jnp.asarray(valid), "softmax")
    for ours, row, mask in zip(softmax, raw.astype(float), valid, strict=True):
        weights = np.exp(row[mask] - row[mask].max())
        np.testing.assert_allclose(ours[mask], weights / weights.sum(), rtol=1e-6, atol=1e-30)
        assert (ours[~mask] == 0).all()
    all_padding = normalize(jnp.asarray(raw), jnp.zeros(valid.shape, bool), "softmax")
    assert (all_padding == 0).all()
    bfloat16 = normalize(jnp.asarray(raw, jnp.bfloat16), jnp.asarray(valid), "softmax")
    assert bfloat16.dtype == jnp.float32


def test_l2_normalize_keeps_zero_vectors_also_in_the_gradient():
    x = np.float32([[3, 4, 0], [0, 0, 0]])
    value, gradient = jax.value_and_grad(lambda x: similarity.l2_normalize(x)[:, 0].sum())(x)
    assert value == pytest.approx(0.6)
    np.testing.assert_allclose(gradient, [[16 / 125, -12 / 125, 0], [0, 0, 0]], atol=1e-6)
    assert similarity.l2_normalize(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("paired", [False, True])
def test_all_terms_equal_the_formulas(sides, paired):
    """The expected scores [3, taps, texts, clips] come from loops over texts, clips and taps."""
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

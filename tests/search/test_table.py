"""Features become rows and come back: the scores of a text and a clip stay the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from hvp_jax.models.similarity import TextFeatures, VideoFeatures, l2_normalize, scores
from hvp_jax.search import scoring, table
from hvp_jax.search.tokens import KINDS, dequantize, quantize

CLIPS, TEXTS, TAPS, TOKENS, DIM = 7, 5, 3, 6, 512


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.asarray(l2_normalize(x))


def weights(*shape: int) -> np.ndarray:
    x = np.random.default_rng(1).random(shape).astype(np.float32)
    return x / x.sum(-1, keepdims=True)


TEXT = TextFeatures(unit(TEXTS, 4, DIM), weights(TEXTS, 4), unit(TEXTS, DIM, seed=2))
VIDEO = VideoFeatures(
    patches=unit(CLIPS, TAPS, TOKENS, DIM, seed=3),
    patch_weights=weights(CLIPS, TAPS, TOKENS),
    patch_sum=unit(CLIPS, TAPS, DIM, seed=4),
    frame_sum=unit(CLIPS, TAPS, DIM, seed=5),
    tap_weights=np.tile(3 * weights(1, 3, TAPS), (CLIPS, 1, 1)),
)


def full(video: VideoFeatures) -> np.ndarray:
    return np.asarray(scores(*jax.device_put((TEXT, video))).sum((0, 1)))


def rows() -> list[table.Row]:
    return [table.Row(f"{i}", f"{i}", None, None, 1.0, "v", "") for i in range(CLIPS)]


def columns(video: VideoFeatures, kind: str, tokens: int = TOKENS) -> pa.Schema:
    """The columns for features of these shapes, with room for so many tokens."""
    shapes = video
    if video.patches is not None:
        shapes = video.replace(patches=np.zeros((1, TAPS, tokens, DIM), np.float32))
    return table.columns_of(shapes, kind)


@pytest.mark.parametrize(("kind", "error"), [("int16", 3e-6), ("int8", 1e-3)])
def test_scores_of_the_features_of_rows_are_those_of_the_clips(kind, error):
    stored = table.to_arrow(rows(), VIDEO, columns(VIDEO, kind))
    found = scoring.score(TEXT, table.to_features(stored), np.float32)
    np.testing.assert_allclose(found, full(VIDEO), atol=error)
    assert kind == "int16" or np.abs(found - full(VIDEO)).max() > 1e-5


@pytest.mark.parametrize(
    "left_out",
    [
        ("tap_weights",),
        ("tap_weights", "frame_sum"),
        ("tap_weights", "frame_sum", "patch_sum"),
        ("tap_weights", "patches", "patch_weights"),
    ],
)
def test_features_of_other_heads_come_back(left_out):
    video = dataclasses.replace(VIDEO, **dict.fromkeys(left_out))
    stored = table.to_arrow(rows(), video, columns(video, "int16"))
    np.testing.assert_allclose(
        scoring.score(TEXT, table.to_features(stored), np.float32), full(video), atol=3e-6
    )


def test_clips_of_fewer_tokens_are_padded():
    stored = table.to_arrow(rows(), VIDEO, columns(VIDEO, "int16", tokens=TOKENS + 3))
    found = table.to_features(stored)
    assert found.tokens.shape == (CLIPS, TAPS, TOKENS + 3, DIM)
    scores = scoring.score(TEXT, found, np.float32)
    np.testing.assert_allclose(scores, full(VIDEO), atol=3e-6)


@pytest.mark.parametrize(("texts", "clips"), [(1, 1), (5, 9), (70, 300)])
def test_more_texts_and_clips_than_are_scored_at_a_time(texts, clips):
    stored = table.to_features(table.to_arrow(rows(), VIDEO, columns(VIDEO, "int16")))
    few = scoring.score(TEXT, stored, np.float32)
    i, j = np.arange(texts) % TEXTS, np.arange(clips) % CLIPS
    text, video = jax.tree.map(lambda x: x[i], TEXT), jax.tree.map(lambda x: x[j], stored)
    many = scoring.score(text, video, np.float32)
    np.testing.assert_allclose(many, few[i][:, j], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_is_off_by_half_a_step_at_most(kind):
    tokens = np.concatenate([unit(4, 64), np.zeros((1, 64), np.float32)])
    integers, scale = quantize(tokens, kind)
    assert integers.dtype == KINDS[kind] and scale[-1] == 0
    error = np.abs(dequantize(integers, scale) - tokens).max(-1)
    assert (error <= 0.51 * scale).all()
    half = np.abs(tokens.astype(np.float16).astype(np.float32) - tokens).mean()
    if kind == "int16":  # better than the other type of its size
        assert np.abs(dequantize(integers, scale) - tokens).mean() < half / 2


def test_types_of_jax_are_taken_too():
    video = dataclasses.replace(VIDEO, patches=jnp.asarray(VIDEO.patches))
    assert table.to_arrow(rows(), video, columns(video, "int16")).num_rows == CLIPS

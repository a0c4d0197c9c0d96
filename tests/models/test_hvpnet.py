"""The complete model: the effect of padding, masks and captions on its scores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from data import inputs
from data.batches.batch import Batch
from hvp_jax.config.resolve import resolve
from hvp_jax.evaluation import results
from hvp_jax.evaluation.scorer import Scorer, score_matrix
from hvp_jax.models import similarity
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params
from hvp_jax.parallel.partitioner import Partitioner
from tests.helpers.small import SIZES, captions, clips, normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

TAPS, BATCH, FRAMES, WORDS = (1, 3), 4, 3, 6
MODEL = HVPNet(SIZES, TAPS, stages=2)
UNMASKED = dataclasses.replace(MODEL, mask_padding=False)


def batch_of(seed: int = 0) -> Batch:
    ids, text_mask = captions(seed, BATCH, WORDS)
    video, video_mask = clips(seed, BATCH, FRAMES)
    return Batch(text_ids=ids, text_mask=text_mask, video=video, video_mask=video_mask)


def padded(batch: Batch) -> Batch:
    """Adds two frames of noise and three words as padding."""
    noise = np.random.default_rng(9).integers(0, 256, (BATCH, 2, *batch.video.shape[2:]))
    return Batch(
        text_ids=np.pad(batch.text_ids, [(0, 0), (0, 3)]),
        text_mask=np.pad(batch.text_mask, [(0, 0), (0, 3)]),
        video=np.concatenate([batch.video, noise.astype(np.uint8)], axis=1),
        video_mask=np.pad(batch.video_mask, [(0, 0), (0, 2)]),
    )


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL, *batch_of())


@pytest.fixture(scope="module")
def run(params):
    """(model, batch) -> scores, features and intermediates, compiled once per shape."""

    @functools.partial(jax.jit, static_argnums=0)
    def forward(model, params, batch):
        (text, video, _), state = model.apply({"params": params}, *batch, mutable=["intermediates"])
        return similarity.scores(text, video), text, video, state["intermediates"]

    return lambda model, batch: forward(model, params, batch)


@pytest.fixture(scope="module")
def model_run(run):
    return run(MODEL, batch_of())


def test_the_batch_of_these_tests_has_padding():
    batch = batch_of()
    assert not batch.text_mask.all() and not batch.video_mask.all()


def test_padding_a_clip_and_a_caption_does_not_change_scores(run, model_run):
    longer = run(MODEL, padded(batch_of()))[0]
    assert longer.shape == (3, 2, BATCH, BATCH)
    np.testing.assert_allclose(longer, model_run[0], atol=1e-5)
    assert np.ptp(model_run[0], axis=(2, 3)).min() > 0.05  # the scores do differ


def test_padding_a_clip_of_identical_frames_does_not_change_scores(run):
    """Identical frames make ties in the clustering; rounding errors must not break them."""
    batch = batch_of()
    batch.video_mask[:] = [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    frame = np.random.default_rng(0).integers(0, 256, (4, 1, *batch.video.shape[2:]))
    batch.video[:] = frame * batch.video_mask[:, :, None, None, None]
    batch.video[3] = 77  # identical patches too
    longer = run(MODEL, padded(batch))[0]
    np.testing.assert_allclose(longer, run(MODEL, batch)[0], atol=1e-5)


def test_without_masks_padding_changes_scores(run):
    batch = batch_of()
    batch.text_mask[:] = batch.video_mask[:] = True  # without padding both models agree
    change = np.abs(run(UNMASKED, padded(batch))[0] - run(MODEL, batch)[0])
    assert change.max(axis=(1, 2, 3)).min() > 1e-3  # each of the three terms
    assert np.abs(run(MODEL, padded(batch))[0] - run(MODEL, batch)[0]).max() < 1e-5


def test_the_scores_equal_the_formulas_on_the_valid_tokens(model_run):
    """Loops over raw features and raw weights, with a softmax over the valid tokens only."""
    scores, _, _, intermediates = model_run
    batch = batch_of()
    raw = {name: np.float64(x[0]) for name, x in intermediates.items() if isinstance(x, tuple)}

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def softmax(x):
        return np.exp(x - x.max()) / np.exp(x - x.max()).sum()

    for tap, a, b in np.ndindex(len(TAPS), BATCH, BATCH):
        words, frames = batch.text_mask[a].sum(), batch.video_mask[b].sum()
        tokens = frames * 5
        for _ in range(MODEL.stages):
            tokens = (tokens + 1) // 2
        word, patch = unit(raw["words"][a, :words]), unit(raw["distilled"][tap, b, :tokens])
        frame = unit(raw["frames"][tap, b, :frames])
        word_weight = softmax(raw["word_weights"][a, :words])
        patch_weight = softmax(raw["patch_weights"][tap, b, :tokens])
        frame_weight = softmax(raw["frame_weights"][tap, b, :frames])
        cosine, sentence = word @ patch.T, unit(raw["sentence"][a])
        expected = [
            (word_weight @ cosine.max(1) + patch_weight @ cosine.max(0)) / 2,
            patch_weight @ (patch @ sentence),
            frame_weight @ (frame @ sentence),
        ]
        np.testing.assert_allclose(scores[:, tap, a, b], expected, atol=1e-5)


def test_the_frame_feature_is_the_first_token_of_the_frame(model_run):
    intermediates = model_run[3]
    patches = intermediates["patches"][0].reshape(len(TAPS), BATCH, FRAMES, 5, -1)
    np.testing.assert_array_equal(intermediates["frames"][0], patches[:, :, :, 0])


def test_a_row_of_only_padding_is_finite_and_does_not_change_other_rows(run, model_run):
    batch = batch_of()
    batch.text_mask[1] = batch.video_mask[2] = False
    scores, text, video, _ = run(MODEL, batch)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((scores, text, video)))
    texts, videos = [0, 2, 3], [0, 1, 3]
    np.testing.assert_allclose(
        scores[:, :, texts][..., videos], model_run[0][:, :, texts][..., videos], atol=1e-5
    )


def test_float_frames_are_used_as_they_are_and_uint8_frames_are_normalised(run, model_run):
    batch = batch_of()
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (batch.video / 255 - mean) / std
    pixels[~batch.video_mask] = np.nan  # padding counts as 0, whatever its values
    normalised = run(MODEL, batch._replace(video=np.float32(pixels)))
    np.testing.assert_allclose(normalised[0], model_run[0], atol=1e-5)
    merged = batch._replace(video=batch.video.reshape(*batch.video.shape[:3], -1))
    np.testing.assert_array_equal(run(MODEL, merged)[0], model_run[0])


@pytest.fixture(scope="module")
def features():
    """Features of 9 captions and 4 clips, and the index of each caption's clip."""
    video_of_text = np.repeat(np.arange(4), [2, 3, 2, 2])
    arrays = iter(range(100))

    def unit(*shape):
        x = np.float32(normal(next(arrays), *shape))
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    text = similarity.TextFeatures(unit(9, 5, 16), np.abs(unit(9, 5)), unit(9, 16))
    video = similarity.VideoFeatures(
        unit(4, 2, 3, 16), unit(4, 2, 3), unit(4, 2, 16), unit(4, 2, 16)
    )
    return text, video, video_of_text


def test_clips_are_padded_to_the_frames_of_the_longest():
    config = base.get_config()  # 12 frames at most

    class Short:
        longest = 3

    assert inputs.padded_num_frames(config, Short) == 3
    assert inputs.padded_num_frames(config, Short, least=5) == 5  # as in training
    assert inputs.padded_num_frames(config, Short, least=20) == 12
    config.similarity.mask_padding = False  # padding then affects the scores
    assert inputs.padded_num_frames(config, Short) == 12


@pytest.mark.parametrize("word_weights", ["query", "paired"])
def test_scores_depend_on_the_order_of_captions_only_with_paired_weights(features, word_weights):
    """By default a score does not depend on which caption belongs to a clip; paired, it does."""
    text, video, video_of_text = features
    config = base.get_config()
    config.similarity.word_weights = word_weights
    scorer = Scorer(
        from_config(resolve(config)),
        config,
        Partitioner("pmap"),
        num_frames=config.data.max_frames,
    )
    order = np.random.default_rng(1).permutation(9)
    shuffled = jax.tree.map(lambda x: x[order], text)
    plain = scorer.score(text, video, video_of_text, np.arange(4))
    after = scorer.score(shuffled, video, video_of_text, np.arange(4))
    change = np.abs(after - plain[order]).max()
    part = scorer.score(
        text, jax.tree.map(lambda x: x[1:3], video), video_of_text, np.array([1, 2])
    )
    np.testing.assert_allclose(part, plain[:, 1:3], atol=1e-6)
    assert change < 1e-6 if word_weights == "query" else change > 0.01
    leak = text.word_weights[[0, 2, 5, 7]] if word_weights == "paired" else None
    np.testing.assert_allclose(plain, score_matrix(text, video, leak), atol=1e-6)
    assert results.scoring_settings(config).get("contains_the_answer", False) == (
        word_weights == "paired"
    )


@pytest.mark.parametrize("paired", [False, True])
def test_block_sizes_do_not_change_scores(features, paired):
    text, video, video_of_text = features
    leak = text.word_weights[np.unique(video_of_text, return_index=True)[1]] if paired else None
    expected = score_matrix(text, video, leak)
    assert expected.shape == (9, 4)
    for chunk, text_block, clip_block in ((16, 7, 3), (1, 1, 1), (2, 9, 4), (3, 512, 2)):
        blocks = score_matrix(
            text, video, leak, chunk, text_block=text_block, clip_block=clip_block
        )
        np.testing.assert_allclose(blocks, expected, atol=1e-6)


def test_from_config_uses_every_model_setting():
    config = base.get_config()
    assert from_config(resolve(config)) == HVPNet(
        VARIANTS["ViT-B/32"],
        (1, 6, 12),
        stages=3,
        normalize="softmax",
        mask_padding=True,
        remat="dots",
        dtype=jnp.dtype("float32"),
        freeze_patches=False,
    )
    config.model.variant, config.model.taps, config.model.remat = "ViT-L/14", (2, 24), "full"
    config.distillation.stages, config.precision = 2, "bfloat16"
    config.similarity.normalize, config.similarity.mask_padding = "none", False
    config.model.freeze_patches = True
    assert from_config(resolve(config)) == HVPNet(
        VARIANTS["ViT-L/14"],
        (2, 24),
        stages=2,
        normalize="none",
        mask_padding=False,
        remat="full",
        dtype=jnp.dtype("bfloat16"),
        freeze_patches=True,
    )


def test_the_reference_config_sets_all_options_of_the_reference():
    from configs import folder

    config = resolve(folder.get_config("reference"))
    model = from_config(config)
    assert (model.normalize, model.mask_padding) == ("none", False)
    assert (config.similarity.word_weights, config.distillation.noise) == ("paired", "always")


@pytest.mark.parametrize("variant", ["tiny", "ViT-L/14"])
def test_the_shapes_of_the_weights_do_not_depend_on_the_batch(variant):
    sizes = VARIANTS[variant]
    model = HVPNet(sizes, (1, sizes.vision_layers))
    shapes, other = (
        jax.eval_shape(lambda f=frames, w=words: init_params(model, 0, f, w))
        for frames, words in ((1, 4), (3, 7))
    )
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, other)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))
    blocks = shapes["clip"]["visual"]["tower"]["blocks"]["qkv"]["kernel"].shape
    assert blocks == (sizes.vision_layers, sizes.vision_width, 3 * sizes.vision_width)
    assert len(shapes["distill"]) == 3

"""The whole model: what padding, masks and captions may and may not move."""

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
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params, normalize_pixels
from hvp_jax.parallel.partitioner import Partitioner
from tests.helpers.small import SIZES, captions, clips, normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

TAPS, BATCH, FRAMES, WORDS = (1, 3), 4, 3, 6
SOUND = HVPNet(SIZES, TAPS, stages=2)
UNMASKED = dataclasses.replace(SOUND, mask_padding=False)


def batch_of(seed: int = 0) -> Batch:
    ids, text_mask = captions(seed, BATCH, WORDS)
    video, video_mask = clips(seed, BATCH, FRAMES)
    return Batch(ids, text_mask, video, video_mask)


def padded(batch: Batch) -> Batch:
    """Two more frames, of noise, and three more words, all marked as not valid."""
    noise = np.random.default_rng(9).integers(0, 256, (BATCH, 2, *batch.video.shape[2:]))
    return Batch(
        np.pad(batch.text_ids, [(0, 0), (0, 3)]),
        np.pad(batch.text_mask, [(0, 0), (0, 3)]),
        np.concatenate([batch.video, noise.astype(np.uint8)], axis=1),
        np.pad(batch.video_mask, [(0, 0), (0, 2)]),
    )


@pytest.fixture(scope="module")
def params():
    return random_params(SOUND, *batch_of())


@pytest.fixture(scope="module")
def run(params):
    """(model, batch) -> scores, Text, Video and the intermediates, compiled once a shape."""

    @functools.partial(jax.jit, static_argnums=0)
    def forward(model, params, batch):
        (text, video, _), kept = model.apply({"params": params}, *batch, mutable=["intermediates"])
        return similarity.scores(text, video), text, video, kept["intermediates"]

    return lambda model, batch: forward(model, params, batch)


@pytest.fixture(scope="module")
def sound_run(run):
    return run(SOUND, batch_of())


def test_the_batch_of_these_tests_has_padding():
    batch = batch_of()
    assert not batch.text_mask.all() and not batch.video_mask.all()


def test_padding_a_clip_and_a_caption_changes_no_score(run, sound_run):
    longer = run(SOUND, padded(batch_of()))[0]
    assert longer.shape == (3, 2, BATCH, BATCH)
    np.testing.assert_allclose(longer, sound_run[0], atol=1e-5)
    assert np.ptp(sound_run[0], axis=(2, 3)).min() > 0.05  # and scores there are


def test_padding_a_still_changes_no_score(run):
    """Frames that are alike are ties wherever one looks, and no rounding may decide them."""
    batch = batch_of()
    batch.video_mask[:] = [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    picture = np.random.default_rng(0).integers(0, 256, (4, 1, *batch.video.shape[2:]))
    batch.video[:] = picture * batch.video_mask[:, :, None, None, None]
    batch.video[3] = 77  # nor is there anything to see
    longer = run(SOUND, padded(batch))[0]
    np.testing.assert_allclose(longer, run(SOUND, batch)[0], atol=1e-5)


def test_without_masks_padding_does_change_scores(run):
    batch = batch_of()
    batch.text_mask[:] = batch.video_mask[:] = True  # unpadded, both models are one
    moved = np.abs(run(UNMASKED, padded(batch))[0] - run(SOUND, batch)[0])
    assert moved.max(axis=(1, 2, 3)).min() > 1e-3  # each of the three terms
    assert np.abs(run(SOUND, padded(batch))[0] - run(SOUND, batch)[0]).max() < 1e-5


def test_the_scores_are_the_formulas_on_the_valid_tokens(sound_run):
    """From raw features and raw weights, by loops: softmax over what is valid, and nothing else."""
    scores, _, _, kept = sound_run
    batch = batch_of()
    kept = {name: np.float64(x[0]) for name, x in kept.items() if isinstance(x, tuple)}

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def softmax(x):
        return np.exp(x - x.max()) / np.exp(x - x.max()).sum()

    for tap, a, b in np.ndindex(len(TAPS), BATCH, BATCH):
        words, frames = batch.text_mask[a].sum(), batch.video_mask[b].sum()
        tokens = frames * 5
        for _ in range(SOUND.stages):
            tokens = (tokens + 1) // 2
        word, patch = unit(kept["words"][a, :words]), unit(kept["distilled"][tap, b, :tokens])
        frame = unit(kept["frames"][tap, b, :frames])
        of_word = softmax(kept["word_weights"][a, :words])
        of_patch = softmax(kept["patch_weights"][tap, b, :tokens])
        of_frame = softmax(kept["frame_weights"][tap, b, :frames])
        cosine, sentence = word @ patch.T, unit(kept["sentence"][a])
        expected = [
            (of_word @ cosine.max(1) + of_patch @ cosine.max(0)) / 2,
            of_patch @ (patch @ sentence),
            of_frame @ (frame @ sentence),
        ]
        np.testing.assert_allclose(scores[:, tap, a, b], expected, atol=1e-5)


def test_the_first_token_of_each_frame_is_the_frame(sound_run):
    kept = sound_run[3]
    patches = kept["patches"][0].reshape(len(TAPS), BATCH, FRAMES, 5, -1)
    np.testing.assert_array_equal(kept["frames"][0], patches[:, :, :, 0])


def test_a_row_of_nothing_but_padding_stays_finite_and_harms_no_other(run, sound_run):
    batch = batch_of()
    batch.text_mask[1] = batch.video_mask[2] = False
    scores, text, video, _ = run(SOUND, batch)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((scores, text, video)))
    texts, videos = [0, 2, 3], [0, 1, 3]
    np.testing.assert_allclose(
        scores[:, :, texts][..., videos], sound_run[0][:, :, texts][..., videos], atol=1e-5
    )


def test_normalised_pixels_give_what_bytes_give():
    batch = batch_of()
    video, mask = batch.video, jnp.asarray(batch.video_mask)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (video / 255 - mean) / std * batch.video_mask[:, :, None, None, None]
    np.testing.assert_allclose(normalize_pixels(jnp.asarray(video), mask), pixels, atol=1e-5)
    pixels[~batch.video_mask] = np.nan  # what is padded is 0, whatever it holds
    again = normalize_pixels(jnp.asarray(pixels, jnp.float32), mask)
    np.testing.assert_allclose(again, np.nan_to_num(pixels), atol=1e-6)


@pytest.fixture(scope="module")
def features():
    """Features of 9 captions, two or three a clip of 4, and the clip of each."""
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


def test_batches_are_as_wide_as_the_longest_clip():
    config = base.get_config()  # 12 frames at most

    class Short:
        longest = 3

    assert inputs.padded_num_frames(config, Short) == 3
    assert inputs.padded_num_frames(config, Short, least=5) == 5  # as in training
    assert inputs.padded_num_frames(config, Short, least=20) == 12
    config.similarity.mask_padding = False  # then padding is part of a score
    assert inputs.padded_num_frames(config, Short) == 12


@pytest.mark.parametrize("word_weights", ["query", "paired"])
def test_shuffling_the_captions_of_the_gallery(features, word_weights):
    """By default who belongs to whom is no part of a score; with the reference's leak it is."""
    text, video, video_of_text = features
    config = base.get_config()
    config.similarity.word_weights = word_weights
    scorer = Scorer(
        from_config(resolve(config)), config, Partitioner("pmap"), config.data.max_frames
    )
    order = np.random.default_rng(1).permutation(9)
    shuffled = jax.tree.map(lambda x: x[order], text)
    plain = scorer.matrix(text, video, video_of_text, np.arange(4))
    moved = np.abs(scorer.matrix(shuffled, video, video_of_text, np.arange(4)) - plain[order]).max()
    part = scorer.matrix(
        text, jax.tree.map(lambda x: x[1:3], video), video_of_text, np.array([1, 2])
    )
    np.testing.assert_allclose(part, plain[:, 1:3], atol=1e-6)
    assert moved < 1e-6 if word_weights == "query" else moved > 0.01
    leak = text.word_weights[[0, 2, 5, 7]] if word_weights == "paired" else None
    np.testing.assert_allclose(plain, score_matrix(text, video, leak), atol=1e-6)
    assert results.scoring_settings(config).get("contains_the_answer", False) == (
        word_weights == "paired"
    )


@pytest.mark.parametrize("paired", [False, True])
def test_blocks_change_no_score(features, paired):
    text, video, video_of_text = features
    leak = text.word_weights[np.unique(video_of_text, return_index=True)[1]] if paired else None
    whole = score_matrix(text, video, leak)
    assert whole.shape == (9, 4)
    for chunk, text_block, clip_block in ((16, 7, 3), (1, 1, 1), (2, 9, 4), (3, 512, 2)):
        blocks = score_matrix(text, video, leak, chunk, None, text_block, clip_block)
        np.testing.assert_allclose(blocks, whole, atol=1e-6)


def test_from_config_builds_what_the_config_says():
    config = base.get_config()
    assert from_config(resolve(config)) == HVPNet(
        VARIANTS["ViT-B/32"], (1, 6, 12), 3, "softmax", True, "dots", jnp.dtype("float32"), False
    )
    config.model.variant, config.model.taps, config.model.remat = "ViT-L/14", (2, 24), "full"
    config.distill.stages, config.precision = 2, "bfloat16"
    config.similarity.normalize, config.similarity.mask_padding = "none", False
    config.model.freeze_patches = True
    assert from_config(resolve(config)) == HVPNet(
        VARIANTS["ViT-L/14"], (2, 24), 2, "none", False, "full", jnp.dtype("bfloat16"), True
    )


def test_the_reference_is_reached_by_its_config_alone():
    from configs import folder

    config = resolve(folder.get_config("reference"))
    model = from_config(config)
    assert (model.normalize, model.mask_padding) == ("none", False)
    assert (config.similarity.word_weights, config.distill.noise) == ("paired", "always")


@pytest.mark.parametrize("variant", ["tiny", "ViT-L/14"])
def test_the_weights_do_not_hang_on_the_batch(variant):
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

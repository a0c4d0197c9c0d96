"""The parts of the head by flag: what they compute, and what is gone without them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from data.batches.batch import Batch
from hvp_jax.config.precision import cast_params
from hvp_jax.config.resolve import resolve
from hvp_jax.evaluation.scorer import score_matrix
from hvp_jax.models import flops, similarity
from hvp_jax.models.clip_config import PAPER_TERMS, TERMS
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params, param_shapes
from tests.helpers.small import SIZES, captions, clips, normal, random_params

pytestmark = pytest.mark.usefixtures("quick_compile")

TAPS, BATCH, FRAMES, WORDS = (1, 3), 4, 3, 6
SUBSETS = {
    ("word_patch",): {"distill", "word_weight", "patch_weight"},
    ("sentence_patch",): {"distill", "patch_weight"},
    ("sentence_frame",): {"frame_weight"},
    ("sentence_clip",): set(),
    ("word_patch", "sentence_frame"): {"distill", "word_weight", "patch_weight", "frame_weight"},
    ("sentence_frame", "sentence_clip"): {"frame_weight"},
}
FIELDS = {
    "word_patch": {"patches", "patch_weights"},
    "sentence_patch": {"patch_sum"},
    "sentence_frame": {"frame_sum"},
    "sentence_clip": {"clip_feature"},
}
ALL = HVPNet(SIZES, TAPS, stages=1, terms=TERMS)


def model_of(**fields) -> HVPNet:
    return HVPNet(SIZES, TAPS, **{"stages": 1} | fields)


def batch_of(padding: int = 0) -> Batch:
    """A batch; with `padding`, more words and frames of noise that are masked."""
    ids, text_mask = captions(0, BATCH, WORDS)
    video, video_mask = clips(0, BATCH, FRAMES)
    noise = np.random.default_rng(9).integers(0, 256, (BATCH, padding, *video.shape[2:]))
    width = [(0, 0), (0, padding)]
    return Batch(
        text_ids=np.pad(ids, width),
        text_mask=np.pad(text_mask, width),
        video=np.concatenate([video, noise.astype(np.uint8)], axis=1),
        video_mask=np.pad(video_mask, width),
    )


def params_of(model: HVPNet) -> dict:
    return random_params(model, *batch_of())


def run(model: HVPNet, params: dict, batch: Batch | None = None) -> tuple:
    """Scores, features and intermediates."""

    @jax.jit
    def forward(params, batch):
        (text, video, _), sown = model.apply({"params": params}, *batch, mutable=["intermediates"])
        return similarity.scores(text, video), text, video, sown["intermediates"]

    return forward(params, batch or batch_of())


def cost(model: HVPNet, params: dict) -> float:
    """XLA's count of operations of the encoders and the scores."""

    @jax.jit
    def scores(params, batch):
        text, video, _ = model.apply({"params": params}, *batch)
        return similarity.scores(text, video, clip_chunk=BATCH)

    return scores.lower(params, batch_of()).cost_analysis()["flops"]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def all_terms() -> tuple:
    params = params_of(ALL)
    return params, *run(ALL, params), cost(ALL, params)


@pytest.mark.parametrize("terms", SUBSETS, ids="+".join)
def test_a_subset_of_the_terms_scores_the_same_and_costs_less(terms):
    params, scores, _, _, _, whole = all_terms()
    model = dataclasses.replace(ALL, terms=terms)
    own = {name: params[name] for name in {"clip"} | SUBSETS[terms]}
    assert set(param_shapes(model)) == set(own)
    ours, text, video, _ = run(model, own)
    expected = scores[np.array([TERMS.index(term) for term in terms])]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert similarity.terms_of(video) == terms
    present = {name for name, x in vars(video).items() if x is not None}
    assert present == set().union(*(FIELDS[term] for term in terms))
    assert (text.words is None) == (text.word_weights is None) == ("word_patch" not in terms)
    assert (text.sentence is None) == (terms == ("word_patch",))
    assert cost(model, own) < whole
    counts = [flops.training_step(m, BATCH, FRAMES, WORDS) for m in (model, ALL)]
    assert counts[0] < counts[1] or terms == ("word_patch", "sentence_frame")
    matrix = score_matrix(*jax.device_get((text, video)), text_block=3, clip_block=3)
    np.testing.assert_allclose(matrix, ours.sum((0, 1)), atol=1e-5)


def test_without_words_and_patches_only_one_token_is_projected():
    """What is left of the head costs almost nothing beside the towers."""
    model = dataclasses.replace(ALL, terms=("sentence_clip",))
    params, *_, whole = all_terms()
    tokens = len(TAPS) * BATCH * FRAMES * 4  # the patches of a frame
    saved = 2 * (tokens * SIZES.vision_width + BATCH * (WORDS - 1) * SIZES.text_width)
    assert cost(model, {"clip": params["clip"]}) < whole - saved * SIZES.embed_dim


def test_sentence_clip_is_the_mean_pooling_of_clip4clip():
    model = model_of(terms=("sentence_clip",), stages=0, method="none")
    scores, _, _, sown = run(model, params_of(model))
    mask = batch_of().video_mask
    frames, sentence = np.float64(sown["frames"][0]), unit(np.float64(sown["sentence"][0]))
    for tap, b in np.ndindex(len(TAPS), BATCH):
        mean = unit(unit(frames[tap, b][mask[b]]).mean(0))
        np.testing.assert_allclose(scores[0, tap, :, b], sentence @ mean, atol=1e-6)


def test_learned_weights_of_taps_start_uniform_and_multiply_the_scores():
    model, plain = model_of(tap_weights="learned"), model_of()
    params = params_of(plain)
    shape = param_shapes(model)["tap_weights"].shape
    assert shape == (3, len(TAPS)) and "tap_weights" not in param_shapes(plain)
    start = init_params(model, 0)
    assert (start["tap_weights"] == 0).all()
    expected, *_, video, _ = run(plain, params)
    assert video.tap_weights is None
    start = run(model, params | {"tap_weights": np.zeros(shape, np.float32)})[0]
    np.testing.assert_allclose(start, expected, atol=1e-6)
    raw = np.float32(normal(5, *shape))
    weights = len(TAPS) * np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    scores, text, video, _ = run(model, params | {"tap_weights": raw})
    np.testing.assert_allclose(scores, expected * weights[:, :, None, None], atol=1e-5)
    matrix = score_matrix(*jax.device_get((text, video)), clip_chunk=2, text_block=3, clip_block=3)
    np.testing.assert_allclose(matrix, scores.sum((0, 1)), atol=1e-5)


def test_uniform_weights_of_tokens_are_means_over_the_valid_tokens():
    model = model_of(token_weights="uniform")
    params = params_of(model)
    assert set(params) == {"clip", "distill"}
    scores, _, _, sown = run(model, params)
    batch = batch_of()
    raw = {name: np.float64(sown[name][0]) for name in ("words", "distilled", "frames", "sentence")}
    for tap, a, b in np.ndindex(len(TAPS), BATCH, BATCH):
        frames = batch.video_mask[b].sum()
        word = unit(raw["words"][a, batch.text_mask[a]])
        patch = unit(raw["distilled"][tap, b, : (frames * 5 + 1) // 2])
        frame, sentence = unit(raw["frames"][tap, b, :frames]), unit(raw["sentence"][a])
        cosine = word @ patch.T
        expected = [
            (cosine.max(1).mean() + cosine.max(0).mean()) / 2,
            (patch @ sentence).mean(),
            (frame @ sentence).mean(),
        ]
        np.testing.assert_allclose(scores[:, tap, a, b], expected, atol=1e-5)
    params, *_, whole = all_terms()
    learned = dataclasses.replace(ALL, token_weights="uniform")
    own = {name: params[name] for name in ("clip", "distill")}
    networks = len(TAPS) * BATCH * (8 + FRAMES) + BATCH * WORDS  # tokens that have a weight
    assert cost(learned, own) < whole - networks * 8 * SIZES.embed_dim**2 * 0.9


def test_without_distillation_all_patches_are_scored():
    model = model_of(stages=0, method="none", terms=("sentence_patch",))
    params = params_of(model)
    assert set(params) == {"clip", "patch_weight"}
    scores, _, _, sown = run(model, params)
    patches, weights = sown["patches"][0], np.float64(sown["patch_weights"][0])
    assert patches.shape == (2, BATCH, FRAMES * 5, SIZES.embed_dim)
    for tap, b in np.ndindex(len(TAPS), BATCH):
        tokens = batch_of().video_mask[b].sum() * 5
        weight = np.exp(weights[tap, b, :tokens])
        total = weight / weight.sum() @ unit(np.float64(patches[tap, b, :tokens]))
        expected = unit(np.float64(sown["sentence"][0])) @ total
        np.testing.assert_allclose(scores[0, tap, :, b], expected, atol=1e-5)
    longer = run(model, params, batch_of(padding=2))[0]
    np.testing.assert_allclose(longer, scores, atol=1e-5)


@pytest.mark.parametrize("method", ["kmeans", "top_score", "average_pool"])
def test_padding_a_clip_does_not_change_the_scores_of_other_methods(method):
    model = model_of(method=method)
    params = params_of(model)
    scores = run(model, params)[0]
    np.testing.assert_allclose(run(model, params, batch_of(padding=2))[0], scores, atol=2e-5)
    assert np.abs(scores - run(model_of(), params)[0])[:2].max() > 1e-3  # not those of DPC-KNN


def test_from_config_takes_every_part_of_the_head_and_the_order_of_the_terms():
    config = get_config()
    config.model.variant = "tiny"
    assert from_config(resolve(config)).terms == PAPER_TERMS
    config.similarity.terms = ("sentence_clip", "word_patch")
    config.similarity.tap_weights, config.similarity.token_weights = "learned", "uniform"
    config.distillation.method, config.distillation.stages = "kmeans", 2
    config.distillation.attention = config.distillation.conv = False
    config.frames.aggregation = "lstm"
    model = from_config(resolve(config))
    assert (model.terms, model.stages, model.method) == (
        ("word_patch", "sentence_clip"),
        2,
        "kmeans",
    )
    assert (model.tap_weights, model.token_weights) == ("learned", "uniform")
    assert (model.attention, model.conv, model.aggregation) == (False, False, "lstm")
    names = {"clip", "distill", "tap_weights", "frame_aggregation"}
    shapes = param_shapes(model)
    assert set(shapes) == names and set(shapes["distill"]["stage_1"]) == {"norm", "score"}


def test_bfloat16_and_remat_work_with_every_part():
    fields = {"terms": TERMS, "tap_weights": "learned", "method": "kmeans", "remat": "full"}
    for aggregation in ("transformer", "lstm"):
        model = model_of(**fields, aggregation=aggregation, dtype=jnp.dtype("bfloat16"))
        params = cast_params(params_of(model), model.dtype)

        @jax.jit
        @jax.grad
        def gradient(params, model=model):
            batch = map(jnp.asarray, batch_of())
            text, video, _ = model.apply({"params": params}, *batch)
            return similarity.scores(text, video)[:, :, 0].sum()

        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient(params)))

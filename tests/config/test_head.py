"""The keys of the head: what replaces None, what contradicts, and what does not fit weights."""

import dataclasses

import pytest

from configs.base import get_config
from data.errors import UsageError
from hvp_jax.config import saved
from hvp_jax.config.overrides import override
from hvp_jax.config.resolve import resolve
from hvp_jax.config.validate import validate
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.model_spec import HeadConfig, ModelSpec, head_from_config

TINY = VARIANTS["tiny"]
HEAD = HeadConfig()


def changed(**changes):
    config = get_config().lock()
    for key, text in ({"model__variant": "tiny"} | changes).items():
        override(config, key.replace("__", "."), str(text))
    return config


def resolved(weights_head=None, taps=None, **changes):
    return resolve(changed(**changes), ModelSpec(TINY, taps, weights_head))


def test_no_stages_and_the_method_none_are_the_same():
    for changes in ({"distillation__stages": 0}, {"distillation__method": "none"}):
        config = resolved(**changes)
        assert (config.distillation.stages, config.distillation.method) == (0, "none")
        assert resolve(config) == config  # as a resumed run does with its config.json
        assert resolve(saved.from_json(saved.to_json(config))) == config
    config = resolved(HeadConfig(stages=0, method="none"))
    assert (config.distillation.stages, config.distillation.method) == (0, "none")
    assert resolved().distillation.stages == 3
    assert resolved(HeadConfig(stages=2)).distillation.stages == 2


def test_stages_and_the_method_none_contradict_each_other():
    config = changed(distillation__stages=2, distillation__method="none")
    with pytest.raises(UsageError, match="config.distillation.stages is 2 and config.distillation"):
        validate(config)


def test_the_terms_get_the_order_in_which_they_are_scored():
    config = resolved(similarity__terms="sentence_clip,word_patch")
    assert config.similarity.terms == ("word_patch", "sentence_clip")
    assert head_from_config(config).terms == config.similarity.terms


def test_minus_one_is_the_last_tap():
    assert resolved(model__taps="1,-1").model.taps == (1, TINY.vision_layers)
    with pytest.raises(UsageError, match="counted from 1 to 4"):
        resolved(model__taps="-5,1")


@pytest.mark.parametrize(
    ("stored", "changes", "expected"),
    [
        (HEAD, {"distillation__method": "none"}, "distillation.stages is 0; the weights have 3"),
        (HEAD, {"distillation__stages": 2}, "distillation.stages is 2; the weights have 3"),
        (
            HeadConfig(stages=0, method="none"),
            {"distillation__stages": 3},
            "distillation.stages is 3; the weights have 0",
        ),
        (HEAD, {"distillation__attention": False}, "attention is False; the weights have True"),
        (HEAD, {"distillation__conv": False}, "conv is False; the weights have True"),
        (HEAD, {"similarity__token_weights": "uniform"}, "uniform; the weights have learned"),
        (HEAD, {"similarity__tap_weights": "learned"}, "learned; the weights have uniform"),
        (HEAD, {"frames__aggregation": "lstm"}, "aggregation is lstm; the weights have none"),
        (
            HeadConfig(terms=("sentence_clip",)),
            {},
            "config.similarity.terms is .*; the weights are of terms sentence_clip and have no",
        ),
        (
            HeadConfig(attention=False),
            {"distillation__attention": False, "distillation__method": "average_pool"},
            "distillation.method is average_pool; the weights have dpc_knn",
        ),
        (
            HeadConfig(tap_weights="learned"),
            {"similarity__tap_weights": "learned", "model__taps": "4"},
            r"tap_weights is learned, for .* taps \(4,\); the weights .* taps \(1, 2, 4\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_key(stored, changes, expected):
    with pytest.raises(UsageError, match=expected):
        resolved(stored, (1, 2, 4), **changes)


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        (HEAD, {"similarity__terms": "sentence_frame", "distillation__method": "none"}),
        (HEAD, {"similarity__terms": "sentence_patch"}),
        (HEAD, {"similarity__terms": "sentence_clip", "similarity__token_weights": "uniform"}),
        (HEAD, {"distillation__method": "kmeans"}),  # the same parameters
        (dataclasses.replace(HEAD, aggregation="lstm"), {"similarity__terms": "word_patch"}),
    ],
)
def test_weights_with_all_parameters_that_the_terms_need_fit(stored, changes):
    head = head_from_config(resolved(stored, **changes))
    assert head.modules() <= stored.modules()


def test_the_transformer_has_a_position_for_every_frame():
    changes = {"frames__aggregation": "transformer", "data__max_frames": 78}
    with pytest.raises(UsageError, match="max_frames is 78; .*transformer takes at most 77"):
        validate(changed(**changes))
    validate(changed(**changes | {"frames__aggregation": "lstm"}))

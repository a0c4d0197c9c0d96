"""Weights of every head in a workdir: described, loaded, exported; those of earlier versions."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs.base import get_config
from data.errors import UsageError
from hvp_jax.checkpoints.model_card import build_card, card_shapes, card_spec, read_card
from hvp_jax.checkpoints.save_weights import save_weights
from hvp_jax.cli.verbs import port
from hvp_jax.config.resolve import resolve
from hvp_jax.models.hvpnet import HVPNet, from_config, param_shapes
from hvp_jax.models.model_spec import HeadConfig, ModelSpec, head_of
from hvp_jax.monitoring import json_files
from hvp_jax.weights import initial
from tests.helpers.small import SIZES

pytestmark = pytest.mark.usefixtures("quick_compile")

WORDS = dataclasses.replace(SIZES, vocab_size=49408)  # CLIP's, for captions
TAPS = (1, 3)
HEADS = {
    "no distillation": HeadConfig(stages=0, method="none"),
    "clip4clip": HeadConfig(
        stages=0, method="none", terms=("sentence_clip",), token_weights="uniform"
    ),
    "learned taps": HeadConfig(tap_weights="learned", terms=("sentence_frame", "sentence_clip")),
}


def write_run(workdir, head: HeadConfig | None) -> dict:
    """A workdir with weights of a head, or of CLIP alone, as a run leaves it."""
    shapes = param_shapes(HVPNet(WORDS, TAPS, **vars(head or HeadConfig(stages=1))))
    shapes = shapes if head else {"clip": shapes["clip"]}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(rng.standard_normal(x.shape)), shapes)
    workdir.mkdir()
    spec = ModelSpec(WORDS, TAPS, head, pretrained=True)
    json_files.write_json(workdir / "model.json", build_card(spec, weights=""))
    save_weights(workdir, 0, jax.tree.map(np.copy, params))
    return params


def config_for(head: HeadConfig):
    config = get_config()
    config.similarity.terms, config.similarity.tap_weights = head.terms, head.tap_weights
    config.similarity.token_weights = head.token_weights
    return config


@pytest.mark.parametrize("name", HEADS)
def test_weights_of_every_head_are_loaded_from_a_workdir_and_as_initial_weights(name, tmp_path):
    head = HEADS[name]
    expected = write_run(tmp_path / "run", head)
    assert read_card(tmp_path / "run")["head"] == head
    for workdir, weights in ((tmp_path / "run", ""), (None, str(tmp_path / "run"))):
        config = config_for(head)
        config.model.weights = weights
        found = initial.find_initial_weights(config, workdir)
        resolved = resolve(config, found.spec)
        model = from_config(resolved, found.spec.clip_config)
        assert head_of(model) == head
        params = initial.init_or_load_params(found, model, 0)
        assert jax.tree.structure(params) == jax.tree.structure(expected)
        for ours, theirs in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_weights_of_clip_alone_are_not_those_of_a_head_without_distillation(tmp_path):
    write_run(tmp_path / "run", None)
    card = read_card(tmp_path / "run")
    assert card_spec(card).head is None and set(card_shapes(card)) == {"clip"}
    config = get_config()
    found = initial.find_initial_weights(config, tmp_path / "run")
    config = resolve(config, found.spec)
    assert config.distillation.stages == 3
    params = initial.init_or_load_params(found, from_config(config, WORDS), 0)
    assert len(params["distill"]) == 3


def test_fewer_terms_leave_out_what_they_do_not_need(tmp_path):
    expected = write_run(tmp_path / "run", HeadConfig(stages=1))
    config = get_config()
    config.similarity.terms = ("sentence_frame",)
    found = initial.find_initial_weights(config, tmp_path / "run")
    config = resolve(config, found.spec)
    model = from_config(config, WORDS)
    params = initial.init_or_load_params(found, model, 0)
    assert set(params) == {"clip", "frame_weight"} == set(param_shapes(model))
    np.testing.assert_array_equal(
        params["frame_weight"]["dense_0"]["kernel"], expected["frame_weight"]["dense_0"]["kernel"]
    )


@pytest.mark.parametrize(("stages", "head"), [(2, HeadConfig(stages=2)), (0, None)])
def test_a_card_of_an_earlier_version_has_stages_alone(stages, head, tmp_path):
    card = build_card(ModelSpec(SIZES, TAPS, head))
    assert card.pop("stages") == stages
    del card["head"]
    (tmp_path / "model.json").write_text(json.dumps(card | {"stages": stages}))
    assert card_spec(read_card(tmp_path)) == ModelSpec(SIZES, TAPS, head)


def test_only_the_originals_head_is_exported(tmp_path):
    write_run(tmp_path / "run", HEADS["no distillation"])
    with pytest.raises(UsageError, match="the original's head differs .* in distill/stage_0/"):
        port.run(tmp_path / "run", tmp_path / "out", export="hvpnet")
    expected = write_run(tmp_path / "baseline", HEADS["clip4clip"])  # CLIP's parameters alone
    port.run(tmp_path / "baseline", tmp_path / "exported", export="hvpnet")
    card = port.run(tmp_path / "exported", tmp_path / "back").card
    assert card["head"] is None and card["stages"] == 0
    assert card["parameters"] == sum(x.size for x in flatten_dict(expected).values())

"""The keys, the values that replace None, what is refused, and the round trip through JSON."""

import dataclasses
import json
import logging
import subprocess
import sys

import pytest

from configs.base import get_config
from data.errors import DataError, UsageError
from hvp_jax.cli import main
from hvp_jax.config import resolve, saved, schema
from hvp_jax.config.overrides import override
from hvp_jax.config.validate import validate
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.model_spec import HeadConfig, ModelSpec
from tests.helpers.command import ROOT


def changed(**changes):
    """The base config, with `model__variant="tiny"` for model.variant."""
    config = get_config().lock()
    for key, text in changes.items():
        override(config, key.replace("__", "."), str(text))
    return config


@pytest.mark.parametrize(
    ("variant", "taps"),
    [
        ("ViT-B/32", (1, 6, 12)),
        ("ViT-B/16", (1, 6, 12)),
        ("ViT-L/14", (1, 12, 24)),
        ("tiny", (1, 2, 4)),
    ],
)
def test_taps_are_first_middle_last(variant, taps):
    assert resolve.resolve(changed(model__variant=variant)).model.taps == taps


def test_learning_rates_from_scratch_and_on_a_pretrained_clip():
    scratch = resolve.resolve(changed()).optimizer
    assert (scratch.learning_rate, scratch.clip_learning_rate) == (1e-3, 1e-3)
    assert (
        resolve.resolve(changed(optimizer__learning_rate=0.5)).optimizer.clip_learning_rate == 0.5
    )
    head = HeadConfig(stages=2)
    spec = ModelSpec(VARIANTS["ViT-L/14"], (2, 24), head, pretrained=True)
    resolved = resolve.resolve(changed(model__weights="clip.npz"), spec)
    assert (resolved.model.taps, resolved.distillation.stages) == ((2, 24), 2)
    assert resolved.model.freeze_patches and resolved.model.variant is None
    pretrained = resolved.optimizer
    assert (pretrained.learning_rate, pretrained.clip_learning_rate) == (1e-4, 1e-7)


def test_resolving_keeps_the_given_values_and_does_not_change_its_argument():
    config = changed(
        model__taps="3", optimizer__learning_rate="0.25", optimizer__clip_learning_rate="0"
    )
    resolved = resolve.resolve(config)
    assert resolved.model.taps == (3,)
    assert (resolved.optimizer.learning_rate, resolved.optimizer.clip_learning_rate) == (0.25, 0)
    untouched = changed()
    resolve.resolve_steps(resolve.resolve(untouched), 100)
    assert untouched.model.taps is None and untouched.train.steps is None
    assert resolved.is_locked


def steps(examples, **changes):
    train = resolve.resolve_steps(changed(**changes), examples, "model__weights" in changes).train
    return train.steps, train.eval_every


def test_steps_follow_from_the_data():
    pretrained = {"model__weights": "clip.npz", "train__batch_size": 10, "train__epochs": 3}
    assert steps(99, **pretrained) == (27, 9)  # the examples left over after 9 batches are dropped
    assert steps(4, **pretrained) == (3, 1)
    assert steps(99, train__steps=50, **pretrained) == (50, 9)
    assert steps(99) == (300, 60)
    assert steps(99, train__steps=3) == (3, 1)
    assert steps(99, train__steps=100, train__eval_every=7) == (100, 7)


def test_nothing_is_left_at_none():
    config = resolve.resolve_steps(resolve.resolve(changed()), 1000)
    # It depends on the device too: `hvpnet.from_config` chooses.
    assert [k for k, value in schema.flatten(config).items() if value is None] == ["model.fused"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *((key, "nonsense", choices[0]) for key, choices in schema.CHOICES.items()),
        *((key, least - 1, f"at least {least}") for key, least in schema.MINIMUM.items()),
        ("data.max_words", 78, "at most 77"),
        ("optimizer.warmup_fraction", 1, "below 1"),
        ("data.val_fraction", 1, "fraction of the training videos, below 1"),
        ("optimizer.max_grad_norm", 0, "above 0"),
        ("augment.crop", 0, "above 0"),
        ("augment.crop", 1.1, "at most 1"),
        ("augment.rand_augment", "rand-m7-n4", "form rand-m7-n4-mstd0.5-inc1"),
        ("model.taps", "0,6", "counted from 1 to 12"),
        ("model.taps", "1,13", "counted from 1 to 12"),
        ("model.taps", "6,1", "in increasing order"),
        ("model.taps", "6,6", "in increasing order"),
    ],
)
def test_the_error_for_a_value_that_is_not_allowed_names_its_key(key, value, expected):
    config = get_config()
    override(config, key, str(value))
    with pytest.raises(UsageError) as refused:
        validate(config)
    assert f"config.{key} " in str(refused.value)
    assert expected in str(refused.value)


def test_the_limits_themselves_are_allowed():
    for key, least in schema.MINIMUM.items():
        config = get_config()
        override(config, key, str(least))
        validate(config)
    validate(changed(data__max_words=77))
    validate(changed(model__taps="1,2,3,4", model__variant="tiny"))
    validate(resolve.resolve_steps(resolve.resolve(changed()), 100))


def test_every_key_that_is_validated_is_required():
    config = get_config()
    del config.distillation.stages
    with pytest.raises(UsageError, match="no key config.distillation.stages"):
        validate(config)
    known = schema.flatten(get_config())
    assert {*schema.CHOICES, *schema.MINIMUM, *schema.OPTIONAL, *schema.AUGMENT} <= known.keys()


def test_keys_that_are_none_are_the_optional_ones():
    none = {key for key, value in schema.flatten(get_config()).items() if value is None}
    assert none == schema.OPTIONAL.keys()


@pytest.mark.parametrize("resolved", [False, True])
def test_the_round_trip_through_json(resolved):
    config = get_config()
    config.optimizer.weight_decay = 1
    config.data.clip_config = (64, 32)
    config.lock()
    if resolved:
        config = resolve.resolve_steps(resolve.resolve(config), 1000)
    read = saved.from_json(saved.to_json(config))
    assert read == config and saved.difference(read, config) == []
    assert read.is_locked and read.model.taps == config.model.taps
    for text in ("1,4", "none"):
        override(read, "model.taps", text)
    override(read, "optimizer.learning_rate", "1")
    override(read, "optimizer.weight_decay", "0.5")
    override(read, "train.steps", "9")
    assert (read.optimizer.learning_rate, read.train.steps, read.model.taps) == (1.0, 9, None)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"seed": 1'])
def test_text_that_is_not_a_config_is_refused(text):
    with pytest.raises(DataError, match="not the JSON of a config"):
        saved.from_json(text)


OLD_VALUES = {"distill.stages": 2, "train.choose_on": "test", "train.best_by": "text_to_video/R@1"}


def with_old_keys(config):
    """The values of a config under the former names of their keys, each changed by a little."""
    values = config.to_dict()
    for old, new in schema.RENAMED.items():
        (old_group, old_name), (group, name) = old.split("."), new.split(".")
        if name not in values[group]:
            continue  # an even older name of the same key
        value = values[group].pop(name)
        changed_value = 0.5 if value is None or value == 0 else value
        values.setdefault(old_group, {})[old_name] = OLD_VALUES.get(old, changed_value)
    return {group: value for group, value in values.items() if value != {}}


def test_a_config_json_with_old_keys_is_read_and_logged_in_one_line(caplog):
    values = with_old_keys(get_config())
    with caplog.at_level(logging.INFO):
        config = saved.from_json(json.dumps(values))
    used = {
        f"{group}.{name}"
        for group in values
        if isinstance(values[group], dict)
        for name in values[group]
    } & schema.RENAMED.keys()
    for old in used:
        (old_group, old_name), (group, name) = old.split("."), schema.RENAMED[old].split(".")
        assert config[group][name] == values[old_group][old_name]
    assert schema.flatten(config).keys() == schema.flatten(get_config()).keys()
    assert config.is_locked
    validate(config)
    override(config, "optimizer.learning_rate", "none")
    [line] = caplog.messages
    assert "\n" not in line and all(f"{old} to {schema.RENAMED[old]}" in line for old in used)
    caplog.clear()
    assert saved.from_json(saved.to_json(config)) == config and not caplog.messages


@pytest.mark.parametrize("key", schema.ADDED)
def test_a_config_json_without_a_new_key_is_read_and_is_no_difference(key):
    """A run of an earlier version is evaluated and resumed, whatever the key is resolved to."""
    resolved = resolve.resolve(changed())
    values = resolved.to_dict()
    group, _, name = key.rpartition(".")
    (values[group] if group else values).pop(name)
    old = saved.from_json(json.dumps(values))
    assert schema.flatten(old)[key] == schema.ADDED[key] and old.is_locked
    validate(old)
    assert saved.difference(old, resolved) == [] == saved.difference(resolved, old)
    assert resolve.resolve(old) == resolved
    if not isinstance(schema.ADDED[key], tuple):
        override(old, key, str(schema.flatten(resolved)[key]))
    if schema.ADDED[key] is None:
        override(old, key, "none")
    for text in ("{}", '{"model": 3}'):  # no config of a run, but no crash
        saved.from_json(text)


def test_two_activations_are_a_difference():
    a, b = (resolve.resolve(changed(model__activation=x)) for x in ("gelu", "quick_gelu"))
    assert saved.difference(a, b) == [("model.activation", "gelu", "quick_gelu")]
    with pytest.raises(UsageError, match="must be one of quick_gelu, gelu"):
        validate(changed(model__activation="relu"))


@pytest.mark.parametrize("old", schema.RENAMED)
@pytest.mark.parametrize("place", ["command line", "config file"])
def test_an_old_key_is_refused_with_its_new_name(old, place, tmp_path, capfd):
    file, changes = ROOT / "configs" / "folder.py", [f"--config.{old}=1"]
    if place == "config file":
        file, changes = tmp_path / "old.py", []
        file.write_text(
            "from configs.base import get_config as base\n"
            f"def get_config():\n  config = base()\n  config.{old} = 1\n  return config\n"
        )
    workdir = tmp_path / "never-made"
    assert main.main(["train", f"--config={file}", f"--workdir={workdir}", *changes]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    new, group = schema.RENAMED[old], old.split(".")[0]
    if place == "config file" and group in schema.RENAMED_GROUPS:
        old, new = group, schema.RENAMED_GROUPS[group]
    assert f"config.{old} is now called" in error and f"config.{new};" in error
    assert not workdir.exists()


def test_difference_names_keys_and_both_values():
    a, b = changed(), changed(model__taps="1,12", train__batch_size=8)
    assert saved.difference(a, b) == [
        ("model.taps", None, (1, 12)),
        ("train.batch_size", 32, 8),
    ]
    assert saved.difference(a, changed()) == []


def test_validation_imports_no_jax():
    code = "import sys, hvp_jax.config.schema, hvp_jax.config.overrides; "
    code += "sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "text", ["v5e", "v5e:2", "v3:2x2", "v5e:2x2,", "v5e:0x2", "0xv5e:2x2", "v5e:2x2 v4:2x2x1"]
)
def test_a_topology_names_a_generation_and_the_chips_along_each_axis(text):
    validate(changed(topology="v5e:4x4,v4:2x2x4,v5p:2x2x1,2xv6e:4x4"))
    with pytest.raises(UsageError, match="config.topology is .* such as v5e:4x4"):
        validate(changed(topology=text))


def test_the_fused_path_needs_a_tpu_and_a_tower_that_fits():
    config = changed(model__fused="true", model__variant="ViT-B/32")
    resolved = resolve.resolve(config)
    resolve.check_platform(resolved, "tpu")
    resolve.check_platform(resolve.resolve(changed()), "cpu")
    with pytest.raises(UsageError, match="config.model.fused=True needs a TPU, .* on a cpu here"):
        resolve.check_platform(resolved, "cpu")
    spec = resolve.spec_of_variant(config)
    narrow = spec._replace(clip_config=dataclasses.replace(spec.clip_config, vision_width=192))
    with pytest.raises(UsageError, match="model.fused=True needs a vision tower whose width"):
        resolve.resolve(config, narrow)

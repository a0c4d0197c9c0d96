"""The configs of all data sets, and their reference forms."""

import importlib

import pytest

from configs.base import get_config, with_form
from data import annotations
from data.errors import UsageError
from hvp_jax.config import schema
from hvp_jax.config.overrides import load
from hvp_jax.config.validate import validate
from tests.helpers.command import ROOT

FORMS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
REFERENCES = [f"{name}:reference" for name in (*annotations.PUBLISHED, "folder")]
FORMS += REFERENCES


def form(name):
    """The config of `NAME` or of `NAME:reference`."""
    name, _, argument = name.partition(":")
    return load(f"{ROOT / 'configs' / name}.py" + (f":{argument}" if argument else ""))


@pytest.mark.parametrize("name", FORMS)
def test_every_config_has_the_keys_of_base(name):
    config = form(name)
    assert schema.flatten(config).keys() == schema.flatten(get_config()).keys()
    assert config.is_locked
    validate(config)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_config_is_the_original(name):
    config = form(name)
    added = [key.rpartition(".")[2] for key in schema.ADDED]  # as in the default
    values = config.similarity.to_dict() | config.distillation.to_dict()
    assert {key: value for key, value in values.items() if key not in added} == {
        "word_weights": "paired",
        "normalize": "none",
        "mask_padding": False,
        "chunk_size": 16,
        "stages": None,  # 3, or as the weights have
        "noise": "always",
    }
    assert (config.optimizer.schedule_epochs, config.data.max_frames, config.data.max_words) == (
        5,
        12,
        24,
    )
    assert (config.train.select_on, config.data.val_fraction) == ("test", 0)
    assert config.data.dataset == name.partition(":")[0]
    doc = importlib.import_module(f"configs.{config.data.dataset}").__doc__
    assert ":reference" in doc and "configs/base.py" in doc
    doc = " ".join(with_form.__doc__.split())
    assert "leak the answer" in doc and "selected on the test split" in doc


@pytest.mark.parametrize("form", ["refrence", "", "sound"])
def test_another_form_is_refused(form):
    path = ROOT / "configs/msrvtt.py"
    with pytest.raises(UsageError) as error:
        load(f"{path}:{form}")
    expected = f"config file {path}: there is no form {form!r}, only 'reference'"
    assert str(error.value) == expected


def test_two_forms_or_the_old_file_name_are_refused():
    with pytest.raises(UsageError, match="configs/msrvtt.py:reference does not exist"):
        load(f"{ROOT / 'configs/msrvtt.py'}:reference:reference")
    with pytest.raises(UsageError, match="configs/msrvtt.py:reference"):
        load("configs/msrvtt_reference.py")


def test_every_data_set_has_a_config():
    assert schema.CHOICES["data.dataset"] == annotations.DATASETS
    for dataset in annotations.PUBLISHED:
        config = form(dataset)
        assert config.data.dataset == dataset
        has_paragraphs = dataset in ("didemo", "activitynet")
        expected = (64, 64) if has_paragraphs else (12, 24)
        assert (config.data.max_frames, config.data.max_words) == expected
        val_fraction = 0.05 if dataset in ("msrvtt", "activitynet", "charades") else 0
        assert (config.data.val_fraction, config.train.select_on) == (val_fraction, "val")


def test_only_reference_configs_leak_or_select_on_test():
    for name in FORMS:
        config = form(name)
        sound = (
            config.similarity.word_weights == "query"
            and config.similarity.normalize == "softmax"
            and config.similarity.mask_padding
            and config.distillation.noise != "always"
            and config.train.select_on == "val"
        )
        assert sound != (name in REFERENCES)

"""From a sweep file to the config of every setting."""

import dataclasses

import pytest

from configs.sweeps.base import grid, one_at_a_time, product
from data.errors import UsageError
from hvp_jax.cli import main
from hvp_jax.config.schema import flatten
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.model_spec import ModelSpec
from hvp_jax.sweeps import plan
from hvp_jax.weights import initial
from tests.helpers.command import ROOT
from tests.helpers.sweeps import write_sweep

FOLDER = ROOT / "configs" / "sweeps"
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))


def load(name, *changes):
    return plan.load(str(FOLDER / name), changes)


def test_the_sweeps_that_must_be_there_are():
    assert set(FILES) == {
        "taps",
        "distillation",
        "terms",
        "loss",
        "frames",
        "leaks",
        "recipe",
        "hierarchy",
    }


@pytest.mark.parametrize("name", FILES)
def test_every_setting_of_every_sweep_is_a_config_of_its_own(name):
    sweep = load(f"{name}.py")
    assert len(sweep.manifest.seeds) == 3 and sweep.manifest.sweep == name
    flat = {setting: flatten(config) for setting, config in sweep.configs.items()}
    for setting, changes in sweep.manifest.settings:
        assert all(flat[setting][key] == value for key, value in changes.items())
        base = flat[sweep.manifest.base]
        changed = {key for key in base if flat[setting][key] != base[key]}
        assert changed <= set(changes) | set(dict(sweep.manifest.settings)[sweep.manifest.base])
        assert changed or setting == sweep.manifest.base


def test_taps_follow_the_depth_of_the_tower():
    taps = {name: changes["model.taps"] for name, changes in load("taps.py").manifest.settings}
    assert taps == {"first,middle,last": (1, 2, 4), "middle,last": (2, 4), "last": (4,)} | {
        "all": (1, 2, 3, 4)
    }
    deep = load("taps.py", ("model.variant", "ViT-B/32"))
    taps = [changes["model.taps"] for _, changes in deep.manifest.settings]
    assert taps == [(1, 6, 12), (6, 12), (12,), tuple(range(1, 13))]


def test_taps_follow_the_depth_of_the_weights_which_are_opened_once(monkeypatch, tmp_path):
    opened = []

    def find(config):
        opened.append(config.model.weights)
        clip_config = dataclasses.replace(VARIANTS["ViT-B/32"], vision_layers=6)
        return initial.InitialWeights(ModelSpec(clip_config, pretrained=True))

    monkeypatch.setattr(initial, "find_initial_weights", find)
    sweep = load("taps.py", ("model.weights", str(tmp_path)))
    taps = [changes["model.taps"] for _, changes in sweep.manifest.settings]
    assert taps == [(1, 3, 6), (3, 6), (6,), (1, 2, 3, 4, 5, 6)] and opened == [str(tmp_path)]


def test_rates_and_batches_are_multiples_of_the_base():
    sweep = load("recipe.py", ("optimizer.learning_rate", "1e-2"))
    assert sweep.configs["2x_learning_rate"].optimizer.learning_rate == 0.02
    assert sweep.configs["0.5x_batch_size"].train.batch_size == 16
    with pytest.raises(UsageError, match="--config.model.taps: the setting first,middle,last"):
        load("taps.py", ("model.taps", "2"))  # no setting would be changed


def test_the_leaks_together_are_those_of_the_original():
    sweep = load("leaks.py:folder")
    reference = flatten(main.overrides.load(f"{ROOT / 'configs/folder.py'}:reference"))
    changes = dict(sweep.manifest.settings)["all"]
    assert all(reference[key] == value for key, value in changes.items())
    alone = [changes for name, changes in sweep.manifest.settings if name not in ("base", "all")]
    assert {key for changes in alone for key in changes} == set(changes)
    assert all(len(changes) == 1 for changes in alone)


def test_another_config_may_be_the_base():
    sweep = load("taps.py:msrvtt", ("data.annotations", "/a"), ("data.videos", "/v"))
    for config in sweep.configs.values():
        assert config.data.dataset == "msrvtt" and config.data.annotations == "/a"
        assert config.data.val_seed == config.seed == 0  # the same clips for all seeds
    with pytest.raises(UsageError, match="there is no config 'nobody' in configs/"):
        load("taps.py:nobody")


def test_settings_from_choices():
    choices = {"model.taps": ((1, 4), (4,)), "distillation.conv": (True, False)}
    assert list(grid(choices)) == [
        "taps=1,4+conv=true", "taps=1,4+conv=false", "taps=4+conv=true", "taps=4+conv=false"
    ]  # fmt: skip
    assert grid(choices)["taps=4+conv=false"] == {"model.taps": (4,), "distillation.conv": False}
    alone = one_at_a_time({"optimizer.clip_layers": ("none", "last:2"), "seed": (1,)})
    assert alone == {
        "base": {},
        "clip_layers=none": {"optimizer.clip_layers": "none"},
        "clip_layers=last-2": {"optimizer.clip_layers": "last:2"},
        "seed=1": {"seed": 1},
    }
    both = product(one_at_a_time({"a.x": (1,)}), one_at_a_time({"b.y": (2, 3)}))
    assert list(both) == ["base", "y=2", "y=3", "x=1", "x=1+y=2", "x=1+y=3"]
    assert both["x=1+y=3"] == {"a.x": 1, "b.y": 3}


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"a": {"model.tapss": (1,)}}, (), "setting a of .*config.model.tapss: no such key"),
        ({"a": {"model.taps": 1}}, (), "setting a of .*config.model.taps is 1: expected whole"),
        ({"a": {"model.taps": (9,)}}, (), r"setting a of .*config.model.taps is \(9,\)"),
        ({"a": {}, "b": {"loss.form": "x"}}, (), "setting b of .*config.loss.form is 'x'; it must"),
        ({"a": {"seed": 1}}, (), "setting a of .*config.seed is set by the seeds"),
        ({"a": {"train.steps": 1}}, [("train.steps", "2")], "--config.train.steps: the setting a"),
        ({"a": {}}, [("seed", "2")], "--config.seed: the seeds are those of"),
        ({"a": {}}, [("train.stepz", "2")], "--config.train.stepz: no such key"),
        ({"a/b": {}}, (), "'a/b' is no name of a setting"),
        ({}, (), "a sweep has settings, and seeds that differ"),
    ],
)
def test_what_is_refused_before_anything_starts(tmp_path, settings, changes, message):
    file = write_sweep(tmp_path / "sweep.py", settings)
    with pytest.raises(UsageError, match=message):
        plan.load(file, changes)


@pytest.mark.parametrize("seeds", [(), (0, 0), (-1,), (0.5,)])
def test_seeds_are_whole_numbers_that_differ(tmp_path, seeds):
    with pytest.raises(UsageError, match="seeds"):
        plan.load(write_sweep(tmp_path / "sweep.py", seeds=seeds), ())


def test_a_config_of_the_other_kind_is_refused_with_what_to_do(tmp_path, capfd):
    workdir, demo = f"--workdir={tmp_path / 'w'}", f"--config={ROOT / 'configs/demo.py'}"
    assert main.main(["sweep", demo, workdir]) == 2
    assert (
        "demo.py has no function get_sweep; it is the config of one run" in capfd.readouterr().err
    )
    assert main.main(["train", f"--config={FOLDER / 'taps.py'}", workdir]) == 2
    assert (
        "taps.py has no function get_config; it is a sweep: run it with" in capfd.readouterr().err
    )
    assert main.main(["sweep", f"--config={FOLDER / 'taps.py'}", workdir, "--jobs=0"]) == 2
    assert "--jobs: '0' is not a whole number from 1 on" in capfd.readouterr().err
    assert not (tmp_path / "w").exists()

"""Which keys of a config may change when a run resumes."""

import json

import pytest

from configs.base import get_config
from data.errors import UsageError
from hvp_jax.config.resolve import resolve, resolve_steps
from hvp_jax.config.schema import flatten
from hvp_jax.training.resume import MAY_CHANGE, check_resumable

EXAMPLES = 24
DATA = {"processes": 1, "clips": 24, "sha256": "s"}


def test_only_keys_that_affect_no_update_may_change():
    assert {key for key in flatten(get_config()) if key.startswith(MAY_CHANGE)} == {
        *("bench", "eval.batch_size", "eval.split", "fsdp", "parallel", "profile", "topology"),
        *("compile_cache", "model.fused"),
        *("data.annotations", "data.beam_options", "data.exclude", "data.root"),
        *("data.shards", "data.videos"),
        *("train.checkpoint_every", "train.eval_every", "train.keep_period", "train.log_every"),
        *("train.max_skipped_updates", "train.max_to_keep", "train.select_by"),
        "train.stall_timeout",
    }


def config_of(schedule_epochs=0, **train):
    """Four steps are an epoch."""
    config = get_config()
    config.train.update(batch_size=6, **train)
    config.optimizer.schedule_epochs = schedule_epochs
    return resolve_steps(resolve(config), EXAMPLES)


def check(tmp_path, before, now, step=4):
    """Resumes with the config `now` a run that has `step` steps with the config `before`."""
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(before.to_dict()))
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    check_resumable(now, DATA, tmp_path, EXAMPLES)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"steps": 4, "schedule_epochs": 5}, {"steps": 6, "schedule_epochs": 5}),
        ({"epochs": 1, "schedule_epochs": 5}, {"epochs": 2, "schedule_epochs": 5}),
        ({"steps": 8, "schedule_epochs": 5}, {"steps": 4, "schedule_epochs": 5}),
        ({"steps": 4}, {"steps": 6, "schedule_epochs": 1}),
        ({"steps": 8}, {"epochs": 2}),
        ({"steps": 7}, {"steps": 7, "epochs": 9}),
    ],
)
def test_the_steps_may_change_if_the_schedule_does_not(tmp_path, before, now):
    check(tmp_path, config_of(**before), config_of(**now))


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"steps": 4}, {"steps": 6}, "of 4 steps, now of 6: .*add .*optimizer.schedule_epochs=1"),
        (
            {"epochs": 2},
            {"epochs": 3},
            "of 8 steps, now of 12: .*optimizer.schedule_epochs=2",
        ),
        ({"steps": 6}, {"steps": 4}, "of 6 steps, now of 4: .*length. To train with another"),
        ({"steps": 6, "schedule_epochs": 2}, {"steps": 6, "schedule_epochs": 3}, "of 8 .* of 12"),
    ],
)
def test_other_steps_that_change_the_schedule_are_refused(tmp_path, before, now, message):
    with pytest.raises(UsageError, match=message) as caught:
        check(tmp_path, config_of(**before), config_of(**now))
    assert f"--config.model.weights={tmp_path} and another workdir" in str(caught.value)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    before, now = (config_of(steps=steps, schedule_epochs=5) for steps in (8, 6))
    with pytest.raises(UsageError, match="is at step 7 already, and train.steps is 6"):
        check(tmp_path, before, now, step=7)


def test_a_config_of_an_earlier_version_resumes_with_more_steps(tmp_path):
    before, now = (config_of(steps=steps, schedule_epochs=5) for steps in (4, 6))
    old = before.to_dict()
    old["optim"] = old.pop("optimizer")
    for key in ("name", "schedule", "clip_layers", "layer_decay"):  # it has no such keys
        del old["optim"][key]
    old["optim"]["rate"] = old["optim"].pop("learning_rate")
    old["train"]["keep"] = old["train"].pop("max_to_keep")
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    check_resumable(now, DATA, tmp_path, EXAMPLES)

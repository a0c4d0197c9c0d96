"""Which checkpoints are kept, and which one is selected."""

import pytest

from configs import base
from data.errors import UsageError
from hvp_jax.checkpoints.checkpointer import Checkpointer
from hvp_jax.config.validate import validate
from tests.helpers.saved_states import batches_at, metrics, state_of, steps_of


@pytest.mark.parametrize(
    "select_by, best, value",
    [("rsum", 20, 302.0), ("text_to_video/R@1", 20, 41.0), ("video_to_text/MdR", 30, 2.0)],
)
def test_the_newest_the_best_and_every_keep_period_are_kept(tmp_path, select_by, best, value):
    table = {10: (20.0, 9.0), 20: (41.0, 7.0), 30: (30.0, 2.0), 50: (30.0, 8.0)}
    options = {"max_to_keep": 1, "keep_period": 40, "select_by": select_by}
    for steps in ((10, 20, 30, 40), (50, 60)):  # the second time the best is on disk only
        with Checkpointer(tmp_path, **options) as checkpoints:
            for step in steps:
                scored = metrics(*table[step]) if step in table else None
                checkpoints.save(step, state_of(step), batches_at(0), scored)
            chosen = checkpoints.select_step()
        assert chosen == {
            "step": best,
            "chosen_on": "val",
            "chosen_by": select_by,
            select_by: value,
        }
        assert steps_of(tmp_path) == sorted({best, 40, steps[-1]})
    with Checkpointer(tmp_path, max_to_keep=1) as checkpoints:  # by the run's own metric
        assert checkpoints.select_step() == chosen


def test_ties_go_to_the_latest_step_and_without_metrics_to_the_last(tmp_path):
    with Checkpointer(tmp_path, max_to_keep=2) as checkpoints:
        checkpoints.save(1, state_of(1), batches_at(0))
        assert checkpoints.select_step() == {"step": 1, "chosen_on": None}
        for step in (2, 3):
            checkpoints.save(step, state_of(1), batches_at(0), metrics(10.0, split="test"))
        checkpoints.save(4, state_of(1), batches_at(0))
        chosen = checkpoints.select_step()
    assert chosen["step"] == 3 and "optimistic" in chosen["warning"]


@pytest.mark.parametrize("key, value", [("select_by", "R@1"), ("keep_period", -1)])
def test_retention_keys_are_validated(key, value):
    config = base.get_config()
    validate(config)
    config.train[key] = value
    with pytest.raises(UsageError, match=f"train.{key}"):
        validate(config)

"""What a training step is made with."""

from configs import folder
from hvp_jax.config.resolve import resolve, resolve_steps
from hvp_jax.training import step_spec


def test_a_schedule_that_is_shorter_than_the_run_gives_a_warning():
    config = resolve_steps(resolve(folder.get_config("reference")), examples=1000)
    assert config.train.steps == 300  # from scratch; an epoch has 31 batches of 32
    warning = step_spec.schedule_warning(config, 1000)
    assert "ends at step 155 of 300" in warning and "rises again" in warning
    assert "\n" not in warning
    config.train.steps = 155
    assert step_spec.schedule_warning(config, 1000) == ""
    config.train.steps, config.optimizer.schedule_epochs = 300, 0
    assert step_spec.schedule_warning(config, 1000) == ""


def test_batches_without_right_wrong_answers_give_a_warning():
    assert "the loss is always 0" in step_spec.batch_warning(1, 24)
    assert "5 training videos for train.batch_size=8" in step_spec.batch_warning(8, 5)
    assert step_spec.batch_warning(8, 8) == ""
    assert "loss.same_video=ignored or positive" in step_spec.batch_warning(8, 5)
    for same_video in ("ignored", "positive"):
        assert step_spec.batch_warning(8, 5, same_video) == ""
        assert "the loss is always 0" in step_spec.batch_warning(1, 24, same_video)


def test_a_warning_says_what_the_rate_does_after_its_schedule():
    config = resolve_steps(resolve(folder.get_config("reference")), examples=1000)
    config.optimizer.schedule = "warmup_linear"
    assert "the learning rate is 0" in step_spec.schedule_warning(config, 1000)
    config.optimizer.schedule = "warmup_constant"
    assert step_spec.schedule_warning(config, 1000) == ""

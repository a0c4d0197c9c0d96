"""Which keys of a config may change when a run resumes."""

from configs.base import get_config
from hvp_jax.config.schema import flatten
from hvp_jax.training.resume import MAY_CHANGE


def test_only_keys_that_affect_no_update_may_change():
    assert {key for key in flatten(get_config()) if key.startswith(MAY_CHANGE)} == {
        *("bench", "eval.batch_size", "eval.split", "fsdp", "parallel", "profile"),
        *("data.annotations", "data.beam_options", "data.exclude", "data.root"),
        *("data.shards", "data.videos"),
        *("train.checkpoint_every", "train.eval_every", "train.keep_period", "train.log_every"),
        *("train.max_skipped_updates", "train.max_to_keep", "train.select_by"),
        "train.stall_timeout",
    }

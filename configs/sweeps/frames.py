"""Which frames of a clip are seen, how many, and what aggregates them."""

from configs.sweeps.base import Sweep, base_config, one_at_a_time


def get_sweep(name: str | None = None) -> Sweep:
    choices = {
        "frames.aggregation": ("transformer", "lstm"),
        "data.frame_choice": ("head", "random_in_segment"),
        "data.max_frames": (1, 2),
    }
    return Sweep(base_config(name), one_at_a_time(choices))

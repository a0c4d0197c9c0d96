"""The form of the loss (paper section 3.4), and what captions of one clip are to each other."""

from configs.sweeps.base import Sweep, base_config, one_at_a_time, product


def get_sweep(name: str | None = None) -> Sweep:
    form = one_at_a_time({"loss.form": ("summed_score",)})
    same_video = one_at_a_time({"loss.same_video": ("ignored", "positive")})
    sampling = one_at_a_time({"data.sampling": ("videos",)})
    return Sweep(base_config(name), product(form, same_video) | sampling)

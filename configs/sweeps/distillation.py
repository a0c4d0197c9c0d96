"""How tokens are distilled (paper section 3.2): the method, the stages and the parts of a stage."""

from configs.sweeps.base import Sweep, base_config, one_at_a_time


def get_sweep(name: str | None = None) -> Sweep:
    choices = {
        "distillation.method": ("kmeans", "top_score", "average_pool", "none"),
        "distillation.stages": (1, 2),
        "distillation.attention": (False,),
        "distillation.conv": (False,),
    }
    return Sweep(base_config(name), one_at_a_time(choices))

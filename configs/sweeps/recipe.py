"""How training is done: the optimizer, its rates and schedule, the batch, which layers learn.

A run has as many steps as the base where `train.steps` is set, and as many epochs elsewhere.
"""

from configs.sweeps.base import FromBase, Sweep, base_config, one_at_a_time


def get_sweep(name: str | None = None) -> Sweep:
    choices = {
        "optimizer.name": ("adamw", "lion", "muon"),
        "optimizer.schedule": ("warmup_linear", "warmup_constant"),
        "optimizer.layer_decay": (0.75,),
        "optimizer.clip_layers": ("none", "last:1", "last:2"),
    }
    multiples = {
        f"{multiple:g}x_{key.rpartition('.')[2]}": {key: _times(key, multiple)}
        for key in ("optimizer.learning_rate", "optimizer.clip_learning_rate", "train.batch_size")
        for multiple in (0.5, 2)
    }
    return Sweep(base_config(name), one_at_a_time(choices) | multiples)


def _times(key: str, multiple: float) -> FromBase:
    group, _, name = key.partition(".")

    def value(base, layers):
        del layers
        return type(base[group][name])(multiple * base[group][name])

    return value

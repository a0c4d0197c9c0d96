"""Which layers of the vision tower are tapped; the paper's are first, middle and last."""

from configs.sweeps.base import Settings, Sweep, base_config


def get_sweep(name: str | None = None) -> Sweep:
    settings: Settings = {
        "first,middle,last": {"model.taps": lambda _, layers: (1, layers // 2, layers)},
        "middle,last": {"model.taps": lambda _, layers: (layers // 2, layers)},
        "last": {"model.taps": lambda _, layers: (layers,)},
        "all": {"model.taps": lambda _, layers: tuple(range(1, layers + 1))},
    }
    return Sweep(base_config(name), settings)

"""What each unsound choice of the original adds to its figures, alone and all together."""

from configs.sweeps.base import Sweep, base_config, one_at_a_time

UNSOUND = {
    "similarity.word_weights": "paired",  # every clip knows the caption that it should match
    "similarity.normalize": "none",
    "similarity.mask_padding": False,
    "distillation.noise": "always",
    "train.select_on": "test",  # the best checkpoint is selected on what is reported
}


def get_sweep(name: str | None = None) -> Sweep:
    settings = one_at_a_time({key: (value,) for key, value in UNSOUND.items()})
    return Sweep(base_config(name), settings | {"all": dict(UNSOUND)})

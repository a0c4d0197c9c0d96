"""The terms of the score (paper section 3.3), and the weights of taps and tokens in them."""

import itertools

from configs.sweeps.base import Settings, Sweep, base_config, describe

TERMS = ("word_patch", "sentence_patch", "sentence_frame")


def get_sweep(name: str | None = None) -> Sweep:
    subsets = [s for size in (3, 2, 1) for s in itertools.combinations(TERMS, size)]
    settings: Settings = {",".join(subset): {"similarity.terms": subset} for subset in subsets}
    for key, value in (
        ("similarity.tap_weights", "learned"),
        ("similarity.token_weights", "uniform"),
    ):
        settings[describe(key, value)] = {key: value}
    return Sweep(base_config(name), settings)

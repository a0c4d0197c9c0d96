"""What several taps need to beat the last one: the base is the last layer alone.

A tower that was pretrained on stills gives useful class tokens at its last layer only, so the
settings leave the sentence-frame score of the early taps out, or learn how much each tap counts.
"""

from configs.sweeps.base import Settings, Sweep, base_config

PATCH_TERMS = ("word_patch", "sentence_patch")


def get_sweep(name: str | None = None) -> Sweep:
    three = {"model.taps": lambda _, layers: (1, layers // 2, layers)}
    settings: Settings = {
        "last": {"model.taps": lambda _, layers: (layers,)},
        "last+patch_terms": {
            "model.taps": lambda _, layers: (layers,),
            "similarity.terms": PATCH_TERMS,
        },
        "three": three,
        "three+patch_terms": three | {"similarity.terms": PATCH_TERMS},
        "three+learned_tap_weights": three | {"similarity.tap_weights": "learned"},
    }
    return Sweep(base_config(name), settings)

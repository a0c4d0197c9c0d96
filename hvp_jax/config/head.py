"""The keys that say which parts HVP-Net's head has: filled in, and compared with weights."""

import dataclasses

from ml_collections import ConfigDict

from data.errors import UsageError
from hvp_jax.models.clip_config import TERMS
from hvp_jax.models.model_spec import HeadConfig, ModelSpec, head_from_config

STAGES = 3  # paper section 3.2
KEYS = {  # config key of each field of a HeadConfig that decides which parameters there are
    "stages": "distillation.stages",
    "attention": "distillation.attention",
    "conv": "distillation.conv",
    "token_weights": "similarity.token_weights",
    "tap_weights": "similarity.tap_weights",
    "aggregation": "frames.aggregation",
}


def resolve_head(config: ConfigDict, weights_head: HeadConfig | None) -> None:
    """Fills in the stages, as the weights have, and puts the terms in their order.

    No stages and the method "none" are the same. Raises UsageError if both are given and differ.
    """
    similarity, distillation = config.similarity, config.distillation
    similarity.terms = tuple(term for term in TERMS if term in similarity.terms)
    if distillation.method == "none" and distillation.stages:
        raise UsageError(
            f"config.distillation.stages is {distillation.stages} and config.distillation.method "
            "is 'none', which has no stages; give one of the two"
        )
    if distillation.stages is None and distillation.method == "none":
        distillation.stages = 0
    if distillation.stages is None:
        distillation.stages = weights_head.stages if weights_head else STAGES
    if distillation.stages == 0:
        distillation.method = "none"


def require_weights_fit(config: ConfigDict, spec: ModelSpec) -> None:
    """Raises UsageError, naming the key, if the weights have other parameters than the config.

    Weights of more terms than the config has fit, if the terms' own parameters do.
    """
    weights_head = spec.head
    if weights_head is None:
        return
    head = head_from_config(config)
    stored = dataclasses.replace(weights_head, terms=head.terms)
    for name, key in KEYS.items():
        value, stored_value = getattr(head, name), getattr(stored, name)
        if value != stored_value and _matters(name, head):
            raise UsageError(f"config.{key} is {value}; the weights have {stored_value}")
    # Without attention, only the methods that choose or merge by scores have any.
    pools = [x.method == "average_pool" for x in (head, stored)]
    if _matters("conv", head) and not head.attention and pools[0] != pools[1]:
        raise UsageError(
            f"config.distillation.method is {head.method}; the weights have {stored.method}"
        )
    taps = config.model.taps
    if head.tap_weights == "learned" and (weights_head.terms, spec.taps) != (head.terms, taps):
        raise UsageError(
            f"config.similarity.tap_weights is learned, for terms {','.join(head.terms)} and taps "
            f"{taps}; the weights are of terms {','.join(weights_head.terms)} and taps {spec.taps}"
        )
    if missing := sorted(head.modules() - weights_head.modules()):
        raise UsageError(
            f"config.similarity.terms is {','.join(head.terms)}; the weights are of terms "
            f"{','.join(weights_head.terms)} and have no {missing[0]}"
        )


def _matters(name: str, head: HeadConfig) -> bool:
    """Whether a field decides which parameters there are."""
    if name in ("attention", "conv"):
        return head.uses_patches and head.stages > 0
    if name == "stages":
        return head.uses_patches
    if name == "token_weights":
        return head.terms != ("sentence_clip",)
    return name != "aggregation" or head.uses_frames

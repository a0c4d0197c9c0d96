"""What is known of a model besides its sizes: which parts HVP-Net's head has. Plain Python."""

import dataclasses
from typing import Any, NamedTuple

from hvp_jax.models.clip_config import PAPER_TERMS, TERMS, ClipConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The parts of HVP-Net's head. The names of the fields are those of `HVPNet`'s."""

    stages: int = 3  # of distillation; 0: none
    terms: tuple[str, ...] = PAPER_TERMS  # in the order of TERMS
    tap_weights: str = "uniform"  # or learned
    token_weights: str = "learned"  # or uniform
    method: str = "dpc_knn"  # of distillation; "none" if there are no stages
    attention: bool = True  # of a stage of distillation
    conv: bool = True  # likewise
    aggregation: str = "none"  # of frames: none, transformer, lstm

    @property
    def uses_words(self) -> bool:
        return "word_patch" in self.terms

    @property
    def uses_sentence(self) -> bool:
        return self.terms != ("word_patch",)

    @property
    def uses_patches(self) -> bool:
        return "word_patch" in self.terms or "sentence_patch" in self.terms

    @property
    def uses_frames(self) -> bool:
        return "sentence_frame" in self.terms or "sentence_clip" in self.terms

    def modules(self) -> frozenset[str]:
        """The names of the head's parameters at the top of the tree; the rest is `clip`."""
        learned = self.token_weights == "learned"
        return frozenset(
            name
            for name, exists in (
                ("distill", self.uses_patches and self.stages > 0),
                ("word_weight", self.uses_words and learned),
                ("patch_weight", self.uses_patches and learned),
                ("frame_weight", "sentence_frame" in self.terms and learned),
                ("tap_weights", self.tap_weights == "learned"),
                ("frame_aggregation", self.uses_frames and self.aggregation != "none"),
            )
            if exists
        )


class ModelSpec(NamedTuple):
    """What is known of a model from its weights."""

    clip_config: ClipConfig
    taps: tuple[int, ...] | None = None  # None: not recorded with the weights
    head: HeadConfig | None = None  # None: there are no weights, or only CLIP's
    pretrained: bool = False  # training started, or will start, from pretrained weights


def head_from_config(config: Any) -> HeadConfig:
    """The head of a resolved ConfigDict."""
    # Any: this layer does not import ml_collections.
    return HeadConfig(
        stages=config.distillation.stages,
        terms=tuple(term for term in TERMS if term in config.similarity.terms),
        tap_weights=config.similarity.tap_weights,
        token_weights=config.similarity.token_weights,
        method=config.distillation.method,
        attention=config.distillation.attention,
        conv=config.distillation.conv,
        aggregation=config.frames.aggregation,
    )


def learning_layers(config: Any) -> int | None:
    """How many layers at the end of each tower learn; None: all."""
    text = config.optimizer.clip_layers
    return {"all": None, "none": 0}[text] if ":" not in text else int(text.partition(":")[2])


def head_of(model: Any) -> HeadConfig:
    """The head of an `HVPNet`."""
    return HeadConfig(**{x.name: getattr(model, x.name) for x in dataclasses.fields(HeadConfig)})

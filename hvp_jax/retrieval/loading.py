"""The config and the model of weights: a run's own, or what follows from the weights alone."""

import logging

from ml_collections import ConfigDict

from configs import base, clip4clip
from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.config import overrides
from hvp_jax.config.head import KEYS
from hvp_jax.config.validate import validate
from hvp_jax.models.model_spec import HeadConfig, head_from_config
from hvp_jax.weights import initial

log = logging.getLogger(__name__)
HEAD_KEYS = {**KEYS, "terms": "similarity.terms", "method": "distillation.method"}


def build_model(weights: Path, precision: str = "") -> initial.BuiltModel:
    """The model of a run's workdir, or of other weights that `model.weights` takes.

    `precision`: that of the config; empty: the run's. Raises UsageError if there are no weights,
    or if a score depends on the caption of the video.
    """
    is_run = initial.has_checkpoints(weights) and (weights / "config.json").exists()
    config = overrides.load_json(weights / "config.json") if is_run else _config_of(weights)
    if precision:
        config.precision = precision
    validate(config)
    built = initial.build_model(config, weights if is_run else None)
    _require_independent_scores(built.config, weights)
    return built


def _config_of(weights: Path) -> ConfigDict:
    """The config of weights without one: CLIP4Clip's of CLIP's, else that of HVP-Net's head."""
    config = base.get_config()
    config.model.weights = str(weights)
    spec = initial.find_initial_weights(config).spec
    if spec.head is None:
        log.info(
            "%s: the weights are CLIP's alone; a video is scored by the mean of its frames, as in "
            "configs/clip4clip.py",
            weights,
        )
        config = clip4clip.get_config()
        config.model.weights = str(weights)
        return config.lock()
    log.info("%s: there is no config.json of a run; keys are those of configs/base.py", weights)
    _assign_head(config, spec.head)
    return config.lock()


def _assign_head(config: ConfigDict, head: HeadConfig) -> None:
    """Sets the keys that say which parts the head has."""
    for field, key in HEAD_KEYS.items():
        group, _, name = key.partition(".")
        config[group][name] = getattr(head, field)


def _require_independent_scores(config: ConfigDict, weights: Path) -> None:
    """Raises UsageError if the score of a text and a video depends on anything else."""
    head = head_from_config(config)
    clusters = head.uses_patches and head.method == "dpc_knn"
    reason = ""
    if head.uses_words and config.similarity.word_weights == "paired":
        reason = "config.similarity.word_weights=paired: its scores need the videos' own captions"
    elif clusters and config.distillation.noise == "always":
        reason = "config.distillation.noise=always: its scores depend on a video's place in a list"
    if reason:
        raise UsageError(f"{weights} is a run with {reason}; use one of another config")

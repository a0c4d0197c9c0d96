"""The allowed values of the keys in `configs/base.py`, their types and their former names."""

import re
from typing import Any

from ml_collections import ConfigDict

from data import paths
from data.annotations import DATASETS
from data.errors import UsageError
from hvp_jax.models.clip_config import ACTIVATIONS, TERMS, VARIANTS

# rsum: R@1 + R@5 + R@10 of both directions; lower MdR and MnR are better
_METRICS = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
SELECT_BY = ("rsum", *(f"text_to_video/{x}" for x in _METRICS))
SELECT_BY += tuple(f"video_to_text/{x}" for x in _METRICS)

CHOICES = {
    "parallel": ("pmap", "shard_map"),
    "precision": ("float32", "bfloat16", "float64"),
    "model.variant": tuple(VARIANTS),
    "model.activation": ACTIVATIONS,
    "model.remat": ("none", "dots", "full"),
    "distillation.method": ("dpc_knn", "kmeans", "top_score", "average_pool", "none"),
    "frames.aggregation": ("none", "transformer", "lstm"),
    "similarity.tap_weights": ("uniform", "learned"),
    "similarity.token_weights": ("learned", "uniform"),
    "loss.form": ("per_term", "summed_score"),
    "loss.same_video": ("negative", "ignored", "positive"),
    "data.frame_choice": ("uniform", "head", "random_in_segment"),
    "data.sampling": ("pairs", "videos"),
    "optimizer.name": ("bert_adam", "adamw", "lion", "muon"),
    "optimizer.schedule": ("warmup_cosine", "warmup_linear", "warmup_constant"),
    "distillation.noise": ("train", "always", "never"),
    "similarity.word_weights": ("query", "paired"),
    "similarity.normalize": ("softmax", "none"),
    "data.dataset": DATASETS,
    "train.select_on": ("val", "test"),
    "train.select_by": SELECT_BY,
    "eval.split": ("train", "val", "test"),
    "bench": ("step", "similarity", "input", "memory", "plan", "tpu"),
}

MINIMUM = {
    "seed": 0,
    "model.image_size": 1,
    "distillation.stages": 0,
    "similarity.chunk_size": 1,
    "data.max_frames": 1,
    "data.max_words": 3,  # the start and end tokens and one between
    "data.val_fraction": 0,
    "data.val_seed": 0,
    "data.workers": 0,
    "optimizer.learning_rate": 0,
    "optimizer.clip_learning_rate": 0,
    "optimizer.weight_decay": 0,
    "optimizer.warmup_fraction": 0,
    "optimizer.schedule_epochs": 0,
    "train.batch_size": 1,
    "train.epochs": 1,
    "train.steps": 1,
    "train.checkpoint_every": 1,
    "train.eval_every": 1,
    "train.log_every": 1,
    "train.max_skipped_updates": 1,
    "train.stall_timeout": 0,
    "train.max_to_keep": 1,
    "train.keep_period": 0,
    "eval.batch_size": 1,
}

PATHS: dict[str, paths.Kind] = {  # the keys that name a file or a folder
    "model.weights": "any",
    "data.root": "folder",
    "data.annotations": "folder",
    "data.videos": "folder",
    "data.shards": "arrays",
    "data.exclude": "file",
    "compile_cache": "folder",
}
# Values of these keys that are no path.
NOT_PATHS = {("compile_cache", "auto"), ("compile_cache", "none")}

OPTIONAL = {  # the keys that may be None, and their type when they are not
    "model.variant": str,
    "model.image_size": int,
    "model.taps": tuple,
    "model.activation": str,
    "model.freeze_patches": bool,
    "model.fused": bool,
    "distillation.stages": int,
    "data.val_seed": int,
    "optimizer.learning_rate": float,
    "optimizer.clip_learning_rate": float,
    "train.epochs": int,
    "train.steps": int,
    "train.eval_every": int,
}

RENAMED = {  # former name of a key -> its name
    "similarity.chunk": "similarity.chunk_size",
    "data.frames": "data.max_frames",
    "data.words": "data.max_words",
    "data.held_out": "data.val_fraction",
    "optim.rate": "optimizer.learning_rate",
    "optim.clip_rate": "optimizer.clip_learning_rate",
    "optim.warmup": "optimizer.warmup_fraction",
    "optim.learning_rate": "optimizer.learning_rate",
    "optim.clip_learning_rate": "optimizer.clip_learning_rate",
    "optim.warmup_fraction": "optimizer.warmup_fraction",
    "optim.weight_decay": "optimizer.weight_decay",
    "optim.max_grad_norm": "optimizer.max_grad_norm",
    "optim.schedule_epochs": "optimizer.schedule_epochs",
    "distill.stages": "distillation.stages",
    "distill.noise": "distillation.noise",
    "train.choose_on": "train.select_on",
    "train.best_by": "train.select_by",
    "train.keep": "train.max_to_keep",
    "train.keep_every": "train.keep_period",
    "train.most_skipped": "train.max_skipped_updates",
    "train.stall_seconds": "train.stall_timeout",
}

RENAMED_GROUPS = {"optim": "optimizer", "distill": "distillation"}

# Keys that the config.json of an older run does not have, and what they are then.
ADDED = {
    "model.activation": None,
    "model.fused": None,
    "compile_cache": "auto",
    "topology": "v5e:2x2",
    "distillation.method": "dpc_knn",
    "distillation.attention": True,
    "distillation.conv": True,
    "frames.aggregation": "none",
    "similarity.terms": TERMS[:3],
    "similarity.tap_weights": "uniform",
    "similarity.token_weights": "learned",
    "loss.form": "per_term",
    "loss.same_video": "negative",
    "data.val_seed": None,
    "data.frame_choice": "uniform",
    "data.sampling": "pairs",
    "optimizer.name": "bert_adam",
    "optimizer.schedule": "warmup_cosine",
    "optimizer.clip_layers": "all",
    "optimizer.layer_decay": 1.0,
}

GENERATIONS = ("v4", "v5e", "v5p", "v6e")  # of TPUs, that `topology` may name

AUGMENT = ("augment.rand_augment", "augment.crop", "augment.flip")


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """{"model.taps": (1, 6, 12), ...}: every key with its group's name -> its value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def parse_profile(text: str) -> tuple[int, int] | None:
    """The first and last step in `config.profile`, "from:to"; None if it is empty.

    Raises UsageError, naming the key, if it is malformed.
    """
    if not text:
        return None
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(
            f"config.profile is {text!r}; it must be from:to, the first and the last step to "
            "trace, counted from 1, such as 11:13"
        )
    return first, last

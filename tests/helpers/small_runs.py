"""Workdirs with random weights of a small model, as a run leaves them; and videos to search."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from configs.base import get_config
from hvp_jax.checkpoints.model_card import build_card
from hvp_jax.checkpoints.save_weights import save_weights
from hvp_jax.config.resolve import resolve
from hvp_jax.models.hvpnet import from_config
from hvp_jax.models.model_spec import ModelSpec, head_of
from hvp_jax.monitoring import json_files
from tests.helpers.clips import write_video
from tests.helpers.small import SIZES, random_params

WORDS = dataclasses.replace(SIZES, vocab_size=49408)  # CLIP's, for captions
TAPS = (1, 3)
FRAMES = 3


def write_run(workdir: Path, seed: int = 0) -> Path:
    """A model of all three terms with learned weights of its taps."""
    config = get_config()
    config.data.max_frames, config.data.max_words = FRAMES, 12
    config.model.taps, config.model.image_size = list(TAPS), WORDS.image_size
    config.distillation.stages, config.similarity.tap_weights = 1, "learned"
    spec = ModelSpec(WORDS, TAPS, None, pretrained=True)
    model = from_config(resolve(config, spec), WORDS)
    side = WORDS.image_size
    words, mask = np.zeros((1, 4), np.int32), np.ones((1, 4), bool)
    frames, shown = np.zeros((1, FRAMES, side, side, 3), np.uint8), np.ones((1, FRAMES), bool)
    params = random_params(model, words, mask, frames, shown)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: x + np.float32(0.01 * rng.standard_normal(x.shape)), params)
    workdir.mkdir(parents=True)
    card = build_card(ModelSpec(WORDS, TAPS, head_of(model), pretrained=True), weights="")
    json_files.write_json(workdir / "model.json", card)
    json_files.write_json(workdir / "config.json", config.to_dict())
    save_weights(workdir, 0, params)
    return workdir


def write_clip(path: Path, seed: int, seconds: int = 3) -> Path:
    """A video of one frame a second, each of another colour on the left and on the right."""
    colours = np.random.default_rng(seed).integers(0, 256, (seconds, 1, 2, 3), np.uint8)
    frames = [np.repeat(np.repeat(colour, 16, axis=1), 32, axis=0) for colour in colours]
    return write_video(path, frames, rate=1)

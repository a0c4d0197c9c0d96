"""The workdir of a run that was never trained: a checkpoint of random weights, and its config."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from configs.folder import get_config
from data.tokenizer import VOCAB_SIZE
from hvp_jax.checkpoints import model_card
from hvp_jax.checkpoints.save_weights import save_weights
from hvp_jax.config import overrides
from hvp_jax.config.resolve import resolve
from hvp_jax.models.hvpnet import from_config
from hvp_jax.models.model_spec import ModelSpec, head_of
from hvp_jax.monitoring import json_files
from tests.helpers import small

# With CLIP's vocabulary, for captions; few layers, to compile quickly.
SIZES = dataclasses.replace(small.SIZES, vision_layers=2, text_layers=1, vocab_size=VOCAB_SIZE)
# Every term, and weights of the taps that differ.
EVERYTHING = {
    "similarity.terms": ("word_patch", "sentence_patch", "sentence_frame", "sentence_clip"),
    "similarity.tap_weights": "learned",
}


def config_of(**changes: object) -> ConfigDict:
    """The resolved config of a small model; `changes` are config keys."""
    config = get_config()
    config.model.taps = (1, 2)
    config.distillation.stages = 2
    for key, value in changes.items():
        overrides.assign(config, key, value)
    return resolve(config, ModelSpec(SIZES, pretrained=True))


def write_run(workdir: Path, num_frames: int = 2, **changes: object) -> Path:
    """Writes the workdir of a run on clips of at most `num_frames` frames."""
    config = config_of(**changes)
    model = from_config(config, SIZES)
    batch = (*small.captions(0, 1, 4), *small.clips(0, 1, 2))
    params = small.random_params(model, *batch)
    save_weights(workdir, 1, params)
    spec = ModelSpec(SIZES, model.taps, head_of(model), pretrained=True)
    json_files.write_json(workdir / model_card.CARD_FILE, model_card.build_card(spec))
    json_files.write_json(workdir / "config.json", config.to_dict())
    json_files.write_json(workdir / "data.json", {"num_frames": num_frames})
    return workdir

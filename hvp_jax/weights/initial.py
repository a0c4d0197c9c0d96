"""Where the weights of a model come from, and so its sizes: `model.weights`, a run, or chance.

A workdir tells the sizes of its checkpoints in model.json. Any other checkpoint tells them
by its tensors; `hvp_jax/weights/formats.py` reads those.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.errors import UsageError
from data.tokenizer import VOCAB_SIZE
from hvp_jax.checkpoints import checkpointer
from hvp_jax.checkpoints.model_card import card_shapes, card_spec, read_card
from hvp_jax.config.resolve import spec_of_variant
from hvp_jax.models.clip_config import VARIANTS, ClipConfig, ModelSpec
from hvp_jax.models.hvpnet import HVPNet, init_params, shapes_of
from hvp_jax.weights import formats, torch_params

log = logging.getLogger(__name__)


class InitialWeights(NamedTuple):
    spec: ModelSpec  # of the model to be made
    load: Callable[[], dict] | None = None  # the parameters; None: random ones


def find_initial_weights(config: ConfigDict, workdir: Path | None = None) -> InitialWeights:
    """Where the weights come from that a config and a workdir ask for.

    A workdir with checkpoints goes before `model.weights`, which began it. Raises UsageError
    or DataError if what is asked for is not there, or not what `model.variant` says.
    """
    model = config.model
    if workdir and has_checkpoints(workdir):
        found = weights_of_workdir(workdir)
    elif model.weights:
        found = _of_weights(Path(model.weights))
    else:
        spec = spec_of_variant(config)
        clip_config = _at_image_size(spec.clip_config, model.image_size)
        return InitialWeights(spec._replace(clip_config=clip_config))
    theirs = found.spec.clip_config
    if theirs.vocab_size < VOCAB_SIZE:
        raise UsageError(
            f"{model.weights or workdir}: its vocabulary is of {theirs.vocab_size}; captions "
            f"are written in CLIP's, of {VOCAB_SIZE}"
        )
    size = model.image_size
    if model.variant:
        wanted = VARIANTS[model.variant]
        size = size or wanted.image_size
        _require_alike(theirs, wanted, model)
    ours = _at_image_size(theirs, size)
    return InitialWeights(
        found.spec._replace(clip_config=ours), lambda: resize_to(found.load(), theirs, ours)
    )


def _of_weights(path: Path) -> InitialWeights:
    if has_checkpoints(path):
        found = weights_of_workdir(path)
        return found._replace(spec=found.spec._replace(pretrained=True))
    if not formats.is_checkpoint(path):
        raise UsageError(f"model.weights={path}: there is no checkpoint, and no workdir of a run")
    source = formats.open_checkpoint(path)
    for note in source.notes:
        log.info("%s: %s", path, note)
    return InitialWeights(
        ModelSpec(source.clip_config, source.taps, source.stages, pretrained=True),
        lambda: torch_params.from_torch(source.tensors, source.scheme),
    )


def has_checkpoints(workdir: Path) -> bool:
    with checkpointer.Checkpointer(workdir, max_to_keep=1) as checkpoints:
        return checkpoints.latest() is not None


def weights_of_workdir(workdir: Path) -> InitialWeights:
    """The checkpoint that the run in a workdir has chosen, or that `port` wrote there."""
    card = read_card(workdir)

    def load() -> dict:
        with checkpointer.Checkpointer(workdir, max_to_keep=1) as checkpoints:
            return checkpoints.params(checkpoints.select_step()["step"], card_shapes(card))

    return InitialWeights(card_spec(card), load)


def param_shapes(model: HVPNet) -> dict:
    """The tree of shapes of a model's parameters."""
    return shapes_of(model.clip_config, model.stages)


def _require_alike(found: ClipConfig, wanted: ClipConfig, model: ConfigDict) -> None:
    for field in dataclasses.fields(ClipConfig):
        name = field.name
        if name in ("image_size", "activation"):  # the one is fitted, the other the weights' own
            continue
        a, b = getattr(found, name), getattr(wanted, name)
        if a != b:
            raise UsageError(
                f"model.variant={model.variant} has {name} {b}, the weights have {a}; "
                "leave model.variant out to take the sizes of the weights"
            )


def _at_image_size(config: ClipConfig, image_size: int | None) -> ClipConfig:
    image_size = image_size or config.image_size
    if image_size % config.patch_size:
        raise UsageError(
            f"model.image_size={image_size} is no multiple of the patch size, {config.patch_size}"
        )
    return dataclasses.replace(config, image_size=image_size)


def resize_to(params: dict, found: ClipConfig, wanted: ClipConfig) -> dict:
    if found.image_size == wanted.image_size:
        return params
    log.info(
        "position embeddings of %d x %d patches are resized to %d x %d",
        *(s.image_size // s.patch_size for s in (found, found, wanted, wanted)),
    )
    visual = params["clip"]["visual"]
    position = resize_positions(
        np.asarray(visual["position_embedding"]), wanted.image_size // wanted.patch_size
    )
    return {
        **params,
        "clip": {**params["clip"], "visual": {**visual, "position_embedding": position}},
    }


def resize_positions(position: np.ndarray, side: int) -> np.ndarray:
    """[1 + n n, width] -> [1 + side side, width], bicubic; the class token stays."""
    first, grid = position[:1], position[1:]
    n = round(len(grid) ** 0.5)
    grid = jax.image.resize(
        jnp.asarray(grid.reshape(n, n, -1)), (side, side, grid.shape[-1]), "cubic"
    )
    return np.concatenate([first, np.asarray(grid).reshape(side * side, -1)])


def init_or_load_params(found: InitialWeights, model: HVPNet, seed: int) -> dict:
    """The parameters to begin with: those loaded, and random ones for what they lack."""
    loaded = found.load() if found.load else {}
    if found.spec.stages:
        return loaded
    if found.load:
        log.info("the weights are CLIP's alone: distillation and token weights start at random")
    random = jax.jit(init_params, static_argnums=(0, 1))(model, seed)
    return {**random, **loaded}

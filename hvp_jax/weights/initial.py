"""Initial weights of a model, and its sizes: from a workdir, `model.weights`, or at random.

A workdir records the sizes of its checkpoints in model.json. Those of any other checkpoint
follow from its tensors; `hvp_jax/weights/formats.py` reads them.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.errors import UsageError
from data.paths import NOT_IN_S3
from data.storage.path import Path
from data.tokenizer import VOCAB_SIZE
from hvp_jax.checkpoints import checkpointer
from hvp_jax.checkpoints.model_card import card_shapes, card_spec, read_card
from hvp_jax.config.precision import cast_params, enable_float64
from hvp_jax.config.resolve import check_platform, resolve, spec_of_variant
from hvp_jax.models.clip_config import VARIANTS, ClipConfig
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params
from hvp_jax.models.model_spec import ModelSpec, head_of
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.weights import formats
from hvp_jax.weights.identity.activation import require

log = logging.getLogger(__name__)


class InitialWeights(NamedTuple):
    spec: ModelSpec  # of the model to build
    load: Callable[[], dict[str, Any]] = dict  # the parameters; {}: there are none to load


def find_initial_weights(config: ConfigDict, workdir: Path | None = None) -> InitialWeights:
    """The initial weights that a config and a workdir ask for.

    The checkpoints of a workdir take precedence over `model.weights`, from which its run
    started. Raises UsageError or DataError if they are missing or contradict `model.variant`.
    """
    model = config.model
    in_workdir = workdir is not None and has_checkpoints(workdir)
    if workdir is not None and in_workdir:
        weights = weights_of_workdir(workdir)
    elif model.weights:
        weights = _weights_at(Path(model.weights), model.activation)
    else:
        spec = spec_of_variant(config)
        clip_config = _at_image_size(spec.clip_config, model.image_size)
        return InitialWeights(spec._replace(clip_config=clip_config))
    stored = weights.spec.clip_config
    require(model.activation, stored.activation, str(workdir if in_workdir else model.weights))
    if stored.vocab_size < VOCAB_SIZE:
        raise UsageError(
            f"{model.weights or workdir}: its vocabulary has {stored.vocab_size} tokens; captions "
            f"need the {VOCAB_SIZE} of CLIP's"
        )
    image_size = model.image_size
    if model.variant:
        variant = VARIANTS[model.variant]
        image_size = image_size or variant.image_size
        _require_variant(stored, variant, model.variant)
    clip_config = _at_image_size(stored, image_size)
    return InitialWeights(
        weights.spec._replace(clip_config=clip_config),
        lambda: resize_to(weights.load(), stored, clip_config),
    )


def _weights_at(path: Path, activation: str | None) -> InitialWeights:
    if has_checkpoints(path):
        weights = weights_of_workdir(path)
        return weights._replace(spec=weights.spec._replace(pretrained=True))
    if not formats.is_checkpoint(path):
        raise UsageError(f"model.weights={path}: there is no checkpoint, and no workdir of a run")
    source = formats.open_checkpoint(path, activation=activation)
    for note in source.notes:
        log.info("%s: %s", path, note)
    return InitialWeights(
        ModelSpec(source.clip_config, source.taps, source.head, pretrained=True),
        source.load,
    )


class BuiltModel(NamedTuple):
    """A model that scores, and its weights, which are not loaded yet."""

    config: ConfigDict  # resolved
    model: HVPNet
    weights: InitialWeights

    def load_params(self, partitioner: Partitioner) -> Any:
        """The parameters, on every device of this process."""
        params = init_or_load_params(self.weights, self.model, self.config.seed)
        return partitioner.replicate_params(partitioner.shard_state(params))


def build_model(config: ConfigDict, workdir: Path | None = None) -> BuiltModel:
    """The model of a config and of the weights that `find_initial_weights` finds."""
    enable_float64(config)
    weights = find_initial_weights(config, workdir)
    config = resolve(config, weights.spec)
    check_platform(config, jax.default_backend())
    return BuiltModel(config, from_config(config, weights.spec.clip_config), weights)


def has_checkpoints(workdir: Path) -> bool:
    """Whether a folder is the workdir of a run. Raises UsageError if it is one in s3://."""
    if str(workdir).startswith("s3://"):  # where Orbax would find none
        if (workdir / "checkpoints").exists():
            raise UsageError(f"{workdir} is a workdir: {NOT_IN_S3}")
        return False
    with checkpointer.Checkpointer(workdir, max_to_keep=1) as checkpoints:
        return checkpoints.latest() is not None


def weights_of_workdir(workdir: Path) -> InitialWeights:
    """The checkpoint that the run in a workdir selects, or that `port` wrote there."""
    card = read_card(workdir)

    def load() -> dict[str, Any]:
        with checkpointer.Checkpointer(workdir, max_to_keep=1) as checkpoints:
            selected = checkpoints.select_step()
            assert selected is not None  # the workdir has a checkpoint
            return checkpoints.params(selected["step"], card_shapes(card))

    return InitialWeights(card_spec(card), load)


def _require_variant(stored: ClipConfig, variant: ClipConfig, name: str) -> None:
    for field in dataclasses.fields(ClipConfig):
        if field.name in ("image_size", "activation"):  # resized; the weights' own is right
            continue
        a, b = getattr(stored, field.name), getattr(variant, field.name)
        if a != b:
            raise UsageError(
                f"model.variant={name} has {field.name} {b}, the weights have {a}; "
                "leave model.variant out to take the sizes of the weights"
            )


def _at_image_size(config: ClipConfig, image_size: int | None) -> ClipConfig:
    image_size = image_size or config.image_size
    if image_size % config.patch_size:
        raise UsageError(
            f"model.image_size={image_size} is not a multiple of the patch size, "
            f"{config.patch_size}"
        )
    return dataclasses.replace(config, image_size=image_size)


def resize_to(
    params: dict[str, Any], stored: ClipConfig, clip_config: ClipConfig
) -> dict[str, Any]:
    """Resizes the position embeddings of `stored` to the image size of `clip_config`."""
    if stored.image_size == clip_config.image_size:
        return params
    before, after = (c.image_size // c.patch_size for c in (stored, clip_config))
    log.info(
        "position embeddings of %d x %d patches are resized to %d x %d",
        *(before, before, after, after),
    )
    visual = params["clip"]["visual"]
    position = resize_positions(np.asarray(visual["position_embedding"]), after)
    return {
        **params,
        "clip": {**params["clip"], "visual": {**visual, "position_embedding": position}},
    }


def resize_positions(position: np.ndarray, side: int) -> np.ndarray:
    """[1 + n n, width] -> [1 + side side, width], bicubic; the class token stays."""
    class_token, grid = position[:1], position[1:]
    n = round(len(grid) ** 0.5)
    resized = jax.image.resize(
        jnp.asarray(grid.reshape(n, n, -1)), (side, side, grid.shape[-1]), "cubic"
    )
    return np.concatenate([class_token, np.asarray(resized).reshape(side * side, -1)])


def init_or_load_params(weights: InitialWeights, model: HVPNet, seed: int) -> dict[str, Any]:
    """The initial parameters: those loaded, and random ones for what they lack.

    Of weights of more terms than the model has, what the model does not need is left out.
    """
    loaded = weights.load()
    modules = head_of(model).modules()
    if weights.spec.head:
        fitting = {name: loaded[name] for name in ("clip", *sorted(modules))}
        return cast_params(fitting, model.dtype)
    if loaded and modules:
        log.info("the weights are CLIP's alone: %s start at random", ", ".join(sorted(modules)))
    random = jax.jit(init_params, static_argnums=(0, 1))(model, seed)
    return cast_params({**random, **loaded}, model.dtype)

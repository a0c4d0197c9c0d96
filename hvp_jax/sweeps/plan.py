"""From a sweep file to the config of every setting, all checked before anything starts."""

import copy
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.sweeps.base import Sweep
from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.config import overrides
from hvp_jax.config.resolve import resolve, spec_of_variant
from hvp_jax.config.validate import validate
from hvp_jax.models.model_spec import ModelSpec
from hvp_jax.sweeps.manifest import Manifest

NAME = r"\w[\w.,=+-]*"  # of a setting, and of its folder


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings and seeds of a sweep, and the config of each setting with the first seed."""

    manifest: Manifest
    configs: dict[str, ConfigDict]


def load(spec: str, changes: Sequence[tuple[str, str]]) -> Plan:
    """The plan of `--config=FILE.py[:ARG]`; `changes` are (key, text) of `--config.KEY=VALUE`.

    They change the base, and so all settings. Raises UsageError, naming the setting and the key,
    if a config is not allowed, or if a setting has its own value for a key of `changes`. One that
    is a function of the base is allowed, unless all settings have one: nothing would change.
    """
    sweep = overrides.load_sweep(spec)
    _check(spec, sweep)
    base = copy.deepcopy(sweep.base).lock()
    for key, text in changes:
        overrides.override(base, key, text)
    if "seed" in dict(changes):
        raise UsageError(f"--config.seed: the seeds are those of {spec}; change them there")
    base.seed = sweep.seeds[0]
    if base.data.val_fraction and base.data.val_seed is None:
        base.data.val_seed = base.seed  # all runs train on the same clips, decoded once
    overrides.check_paths(base)
    validate(base)
    settings, configs = [], {}
    for name, values in sweep.settings.items():
        for key in values.keys() & dict(changes).keys():
            if not callable(values[key]) or all(key in row for row in sweep.settings.values()):
                raise UsageError(
                    f"--config.{key}: the setting {name} of {spec} sets this key itself; leave "
                    "it out, or change the file"
                )
        try:
            changed, config = _setting(base, values)
        except UsageError as error:
            raise UsageError(f"setting {name} of {spec}: {error}") from None
        settings.append((name, changed))
        configs[name] = config
    name = Path(spec.partition(":")[0]).stem
    manifest = Manifest(name, next(iter(sweep.settings)), tuple(settings), tuple(sweep.seeds))
    return Plan(manifest, configs)


def _check(spec: str, sweep: Sweep) -> None:
    """Raises UsageError if there are no settings or seeds, or a name is not that of a folder."""
    seeds = sweep.seeds
    if not sweep.settings or not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"config file {spec}: a sweep has settings, and seeds that differ")
    if not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"config file {spec}: the seeds {seeds} must be whole numbers from 0 on")
    for name in sweep.settings:
        if not re.fullmatch(NAME, name):
            raise UsageError(
                f"config file {spec}: {name!r} is no name of a setting; it is that of a folder "
                "too: letters, digits and . , = + - _"
            )


def _setting(base: ConfigDict, values: dict[str, Any]) -> tuple[dict[str, Any], ConfigDict]:
    """The values of a setting's keys, those that are functions called, and its config."""
    config = copy.deepcopy(base)
    if "seed" in values:
        raise UsageError("config.seed is set by the seeds of the sweep")
    for key, value in values.items():
        if not callable(value):
            overrides.assign(config, key, value)
    functions = {key: value for key, value in values.items() if callable(value)}
    if functions:
        spec = model_spec(config)
        resolved, layers = resolve(config, spec), spec.clip_config.vision_layers
        values = values | {key: value(resolved, layers) for key, value in functions.items()}
        for key in functions:
            overrides.assign(config, key, values[key])
    overrides.check_paths(config)
    validate(config)
    return values, config


def model_spec(config: ConfigDict) -> ModelSpec:
    """The sizes of a config's model: of its weights, or of its variant without weights."""
    model = config.model
    if not model.weights:
        return spec_of_variant(config)
    return _spec_of_weights(model.weights, model.variant, model.image_size, model.activation)


@functools.cache
def _spec_of_weights(weights: str, *sizes: str | int | None) -> ModelSpec:
    import jax  # which mistakes should not wait for

    from hvp_jax.weights import initial

    jax.config.update("jax_platforms", "cpu")  # an accelerator would not be free for the runs
    names = ("variant", "image_size", "activation")
    model = {"weights": weights} | dict(zip(names, sizes, strict=True))
    return initial.find_initial_weights(ConfigDict({"model": model})).spec

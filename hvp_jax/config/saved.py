"""A config as JSON: the config.json of a run."""

import json
import logging
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from data.errors import DataError
from hvp_jax.config.schema import ADDED, OPTIONAL, RENAMED, flatten

log = logging.getLogger(__name__)


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON; `from_json` returns an equal one."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The locked config that `to_json` wrote. Raises DataError if it is not one."""
    try:
        config = _typed(json.loads(text))
    except ValueError as error:
        raise DataError(f"not the JSON of a config: {error}") from None
    _rename_old_keys(config)
    _add_new_keys(config)
    return config.lock()


def _add_new_keys(config: ConfigDict) -> None:
    """Adds the keys that an earlier version did not have."""
    for key, value in ADDED.items():
        node, name = _group_of(config, key)
        if isinstance(node, ConfigDict) and name not in node:
            node[name] = placeholder(OPTIONAL[key]) if value is None else value


def _rename_old_keys(config: ConfigDict) -> None:
    """Renames the keys of a config.json of an earlier version, in place."""
    flat = flatten(config)
    renamed = [key for key in flat if key in RENAMED]
    for key in renamed:
        node, name = _group_of(config, key)
        del node[name]
        if not node:
            del config[key.partition(".")[0]]
        node, name = _group_of(config, RENAMED[key])
        if RENAMED[key] in OPTIONAL:
            node[name] = placeholder(OPTIONAL[RENAMED[key]])
        node[name] = flat[key]
    if renamed:
        pairs = ", ".join(f"{key} to {RENAMED[key]}" for key in renamed)
        log.info("config.json is of an earlier version; renamed %s", pairs)


def _group_of(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The group of a key, which is made if it is not there, and the key's name in it."""
    group, _, name = key.rpartition(".")
    if not group:
        return config, name
    if group not in config:
        config[group] = ConfigDict()
    return config[group], name


def _typed(values: Any, prefix: str = "") -> ConfigDict:
    """A ConfigDict of JSON values: lists become tuples, and a null gets the type of its key."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.') or 'it'} is not an object")
    config = ConfigDict()
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict):
            config[name] = _typed(value, f"{key}.")
            continue
        if key in OPTIONAL:
            config[name] = placeholder(OPTIONAL[key])
        config[name] = tuple(value) if isinstance(value, list) else value
    return config


def difference(a: ConfigDict, b: ConfigDict) -> list[tuple[str, Any, Any]]:
    """(key, value in `a`, value in `b`) of the keys that differ; None for a key that is absent.

    A key of ADDED that one of them does not record is no difference.
    """
    flat_a, flat_b = flatten(a), flatten(b)
    keys = sorted(flat_a.keys() | flat_b.keys())
    pairs = [(key, flat_a.get(key), flat_b.get(key)) for key in keys]
    return [
        (key, value_a, value_b)
        for key, value_a, value_b in pairs
        if value_a != value_b and not (key in ADDED and None in (value_a, value_b))
    ]

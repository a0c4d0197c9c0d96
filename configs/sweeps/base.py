"""What a sweep is: a base config, settings that change a few of its keys, and seeds.

A sweep file has a function `get_sweep(name=None)`; `--config=FILE.py:NAME` passes the name of the
config in `configs/` that the settings change, such as msrvtt, and without it that is the demo.
"""

import dataclasses
import importlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.base import UnknownForm

BASE = "base"  # the usual name of the setting that changes nothing

Settings = dict[str, dict[str, Any]]
# The value of a key as a function of the base config, whose None are filled in as far as that
# needs no data, and the number of layers of the vision tower.
FromBase = Callable[[ConfigDict, int], Any]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A set of runs: each of `settings` with each of `seeds`.

    `settings` maps a name to {key: value}, with keys as in "model.taps"; a value may be a
    `FromBase`. The first setting is the one that the others are compared with.
    """

    base: ConfigDict
    settings: Settings
    seeds: tuple[int, ...] = (0, 1, 2)


def base_config(name: str | None) -> ConfigDict:
    """The config of `configs/NAME.py`, or of the demo if `name` is None.

    Raises UnknownForm if there is none.
    """
    module = f"configs.{name or 'demo'}"
    if not re.fullmatch(r"\w+", name or "demo") or importlib.util.find_spec(module) is None:
        raise UnknownForm(f"there is no config {name!r} in configs/ that it could change")
    return importlib.import_module(module).get_config()


def grid(choices: Mapping[str, tuple]) -> Settings:
    """A setting for every combination of the values of the keys, named such as "taps=6,12".

    `choices` maps a key to its values; the last key varies fastest.
    """
    keys = list(choices)
    combinations = itertools.product(*choices.values())
    rows = [dict(zip(keys, values, strict=True)) for values in combinations]
    return {"+".join(describe(key, row[key]) for key in keys): row for row in rows}


def one_at_a_time(choices: Mapping[str, tuple]) -> Settings:
    """The base, and for every value of every key a setting that changes this key alone.

    The values of the base need not be among `choices`.
    """
    settings: Settings = {BASE: {}}
    for key, values in choices.items():
        settings |= {describe(key, value): {key: value} for value in values}
    return settings


def product(*parts: Settings) -> Settings:
    """Every combination of a setting of each part, with their names joined.

    A setting that changes nothing is not named, unless no part changes anything.
    """
    settings: Settings = {}
    for combination in itertools.product(*(part.items() for part in parts)):
        changed = [name for name, changes in combination if changes]
        merged: dict[str, Any] = {}
        for _, changes in combination:
            merged |= changes
        settings["+".join(changed) or combination[0][0]] = merged
    return settings


def describe(key: str, value: Any) -> str:
    """A value in the name of a setting: "taps=1,6,12" for model.taps and (1, 6, 12)."""
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    text = re.sub(r"[^\w.,-]", "-", text)  # the name is that of a folder too
    return f"{key.rpartition('.')[2]}={text}"

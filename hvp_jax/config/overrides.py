"""From `--config=FILE.py[:ARG]` and `--config.KEY=VALUE` to a locked config.

Not `ml_collections.config_flags`: its messages span several lines, it reads
`sys.argv` implicitly, and it cannot start from a config.json.
"""

import difflib
import importlib.machinery
import importlib.util
import inspect
import math
import traceback
from typing import Any, TypeVar

from ml_collections import ConfigDict

from configs.base import UnknownForm
from configs.sweeps.base import Sweep
from data.errors import DataError, UsageError
from data.paths import check_path
from data.storage import files as storage
from data.storage.path import Path, is_bucket
from hvp_jax.config.saved import from_json
from hvp_jax.config.schema import NOT_PATHS, OPTIONAL, PATHS, RENAMED, RENAMED_GROUPS, flatten

T = TypeVar("T")

ADVICE = {  # the function that a config file has -> what to do if another one is needed
    "get_config": "it is the config of one run: `train` takes it, `sweep` a file of configs/sweeps",
    "get_sweep": "it is a sweep: run it with `sweep`",
}

EXPECTED = {
    bool: "true or false",
    int: "a whole number (int)",
    float: "a finite number (float)",
    str: "text (str)",
    tuple: "whole numbers separated by commas (tuple), as in 1,6,12",
}


def load(spec: str) -> ConfigDict:
    """The locked config of `FILE.py` or `FILE.py:ARG`; ARG is passed to its `get_config`.

    A config.json of a run is a config as well. Raises UsageError if the file does not exist,
    fails, or returns no config.
    """
    if spec.endswith(".json"):
        return load_json(Path(spec))
    return _load(spec, "get_config", ConfigDict).lock()


def load_sweep(spec: str) -> Sweep:
    """The sweep of `FILE.py` or `FILE.py:ARG`; ARG is passed to its `get_sweep`.

    Raises UsageError if the file does not exist, fails, or returns no sweep.
    """
    return _load(spec, "get_sweep", Sweep)


def _load(spec: str, function: str, kind: type[T]) -> T:
    """What a function of `FILE.py:ARG` returns; UsageError if that is not of this kind."""
    path, arg = Path(spec), None
    if is_bucket(path):
        raise UsageError(
            f"config file {path}: of a bucket, only the config.json of a run is read; copy it to "
            "this machine"
        )
    if not path.is_file() and ":" in spec:
        name, _, arg = spec.rpartition(":")
        path = Path(name)
    if not path.is_file():
        name = path.stem.removesuffix("_reference")
        suggestion = "NAME.py" if name == path.stem else f"{name}.py:reference"
        raise UsageError(f"config file {path} does not exist; use --config=configs/{suggestion}")
    try:
        return _call(path, arg, function, kind)
    except UsageError:
        raise
    except UnknownForm as error:
        raise UsageError(f"config file {path}: {error}") from None
    except SyntaxError as error:
        line = f"{error.filename or path}, line {error.lineno or 1}"
        raise UsageError(f"config file {line}: {error.msg}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        group = RENAMED_GROUPS.get(getattr(error, "name", None) or "")
        if isinstance(error, AttributeError) and group:
            renamed = f"config.{error.name} is now called config.{group}; use that name"
            raise UsageError(f"config file {path}{line}: {renamed}") from None
        raise UsageError(f"config file {path}{line}: {type(error).__name__}: {error}") from None


def _call(path: Path, arg: str | None, function: str, kind: type[T]) -> T:
    loader = importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None  # it is None only if the loader names no module
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    get = getattr(module, function, None)
    if not callable(get):
        other = next((name for name in ADVICE if hasattr(module, name)), "")
        advice = f"; {ADVICE[other]}" if other else ""
        raise UsageError(f"config file {path} has no function {function}{advice}")
    arguments = () if arg is None else (arg,)
    try:
        inspect.signature(get).bind(*arguments)
    except TypeError:
        problem = (
            "needs an argument: FILE.py:ARG" if arg is None else f"takes no argument ({arg!r})"
        )
        raise UsageError(f"config file {path}: its {function} {problem}") from None
    result = get(*arguments)
    if not isinstance(result, kind):
        raise UsageError(
            f"config file {path}: {function} returns {type(result).__name__}, not a {kind.__name__}"
        )
    return result


def load_json(path: Path) -> ConfigDict:
    """The locked config of a run, from its config.json. Raises UsageError if it does not exist."""
    try:
        return from_json(storage.read_text(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(
            f"{path} does not exist; give --config, or the workdir of a training run"
        ) from None
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets `key` ("train.steps") to the value in `text`, in place; UsageError names the key."""
    node, name = _find(config, key, f"--config.{key}")
    if key in OPTIONAL and text.lower() == "none":
        node[name] = None
        return
    kind = node.get_type(name)
    if kind not in EXPECTED:
        raise UsageError(f"--config.{key}: a {kind.__name__} can be set only in the config file")
    try:
        words = kind is tuple and any(isinstance(x, str) for x in node[name] or ())
        node[name] = tuple(text.split(",")) if words else _parse(text, kind)
    except ValueError:
        raise UsageError(
            f"--config.{key}={text}: expected {EXPECTED[kind]}, not {text!r}"
        ) from None


def assign(config: ConfigDict, key: str, value: Any) -> None:
    """Sets `key` ("train.steps") to `value`, in place; UsageError names the key."""
    node, name = _find(config, key, f"config.{key}")
    try:
        node[name] = tuple(value) if isinstance(value, list) else value
    except TypeError:
        expected = EXPECTED.get(node.get_type(name), "another type")
        raise UsageError(f"config.{key} is {value!r}: expected {expected}") from None


def _find(config: ConfigDict, key: str, shown: str) -> tuple[ConfigDict, str]:
    """The group of a key and its name there; UsageError, with the key as `shown`."""
    flat = flatten(config)
    if key in RENAMED:
        renamed = shown.removesuffix(key) + RENAMED[key]
        raise UsageError(f"{shown} is now called {renamed}; use that name")
    if key not in flat:
        raise UsageError(f"{shown}: no such key; {_hint(key, list(flat))}")
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    return node, name


def check_paths(config: ConfigDict) -> None:
    """Replaces each path in a config by what it means, in place; UsageError names the key."""
    flat = flatten(config)
    for key, kind in PATHS.items():
        value = flat.get(key)
        if isinstance(value, str) and value and (key, value) not in NOT_PATHS:
            group, _, name = key.rpartition(".")
            node = config[group] if group else config
            node[name] = check_path(f"config.{key}", value, kind)


def _hint(key: str, known: list[str]) -> str:
    members = [name for name in known if name.startswith(f"{key}.")]
    if members:
        return f"it is a group: {', '.join(f'config.{name}' for name in members)}"
    same_name = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    nearest = difflib.get_close_matches(key, same_name or known, n=1, cutoff=0.0)
    return f"the nearest is config.{nearest[0]}" if nearest else "this config has none"


def _parse(text: str, kind: type) -> Any:
    """Raises ValueError if `text` is not a valid `kind`."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "1", "false", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if kind is int:
        return int(text)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    return tuple(int(part) for part in text.strip("()[] ").rstrip(",").split(","))

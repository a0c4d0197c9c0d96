"""The kinds of flags of the command line, and the check of what is given for each."""

import argparse
import math
from collections.abc import Callable
from typing import Any

from data import paths
from data.storage.path import Path

Flag = tuple[str, dict[str, Any]]  # the arguments of `add_argument`


def text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("expected a non-empty value")
    return value


def positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 on")
    return int(value)


def port(value: str) -> int:
    if not value.isdecimal() or int(value) > 65535:
        raise argparse.ArgumentTypeError(f"{value!r} is not a port, from 1 to 65535, or 0 for any")
    return int(value)


def seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds from 0 on")
    return number


def flag(name: str, metavar: str, help: str, kind=text, **options) -> Flag:
    return name, {"metavar": metavar, "help": help, "type": kind, **options}


def path_flag(name: str, metavar: str, help: str, kind: paths.Kind = "any") -> Flag:
    def path(value: str) -> Path:
        return Path(paths.check_path(name, text(value), kind))

    return flag(name, metavar, help, path)


def names_of(*choices: str) -> Callable[[str], tuple[str, ...]]:
    """A kind of flag: different names from `choices`, separated by commas."""

    def names(value: str) -> tuple[str, ...]:
        given = tuple(value.split(","))
        if not set(given) <= set(choices) or len(set(given)) < len(given):
            raise argparse.ArgumentTypeError(
                f"expected different names from {', '.join(choices)}, separated by commas; "
                f"got {value!r}"
            )
        return given

    return names


def shard_of(value: str) -> tuple[int, int]:
    """A kind of flag: "I/N" -> (I, N), I from 0 to N - 1."""
    index, _, count = value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{value!r} is not I/N with I from 0 to N - 1, as in 0/4")
    return int(index), int(count)


def required(flag: Flag) -> Flag:
    name, options = flag
    return name, {**options, "required": True}

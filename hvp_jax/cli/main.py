"""The command line: `python run.py VERB --config=FILE --workdir=DIR [--config.KEY=VALUE] [--json]`.

All arguments are checked before a verb's module is imported, so that mistakes are reported at
once. Exit status: 0 success, 1 a failed check, bad data or a bug, 2 a usage error.
"""

import argparse
import dataclasses
import difflib
import importlib
import itertools
import os
import re
import sys
import traceback
from typing import Any, NoReturn

from ml_collections import ConfigDict

from data import paths
from data.errors import UsageError, UserError
from data.storage.path import absolute, is_bucket
from hvp_jax.cli import console
from hvp_jax.cli.flags import DISTRIBUTED, VERBS
from hvp_jax.config import overrides
from hvp_jax.config.validate import validate
from hvp_jax.parallel import distributed, libtpu, machine_errors
from hvp_jax.sweeps import plan

DISTRIBUTED_FLAGS = tuple(name.removeprefix("--") for name, _ in DISTRIBUTED)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


@dataclasses.dataclass(frozen=True)
class ErrorResult:
    """What `--json` prints instead of a verb's result."""

    error: str


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` as in sys.argv[1:]."""
    arguments = sys.argv[1:] if arguments is None else arguments
    status = 1
    console.print_any_text()
    try:
        if {"--help", "-h"} & set(arguments):
            status = 0
            verb = next((word for word in arguments if word in VERBS), "")
            print(_parsers()[verb].format_help(), end="", flush=True)
            return status
        json_stream = console.claim_stdout() if "--json" in arguments else None
        status, result = _attempt(arguments)
        if json_stream:
            console.print_result(result, json_stream)
        elif distributed.is_primary() and not isinstance(result, ErrorResult):
            console.print_result(result, None)
    except BrokenPipeError:
        pass  # the reader closed the pipe; the exit status is still right
    except OSError as error:  # the disk of the file that stdout is sent to is full
        status = 1
        print(f"error: cannot write the result to stdout: {error.strerror}", file=sys.stderr)
    if status:
        distributed.exit_now(status)
    return status


def _attempt(arguments: list[str]) -> tuple[int, Any]:
    """The exit status, and the verb's result or the error, which is on stderr already."""
    try:
        run, values = check(arguments)
        result = run(**values)
        return (0 if getattr(result, "ok", True) else 1), result
    except UserError as error:
        status, message = error.status, re.sub(r"\s*\n\s*", " ", str(error)).strip()
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except Exception as error:
        explained = machine_errors.explain(error)
        if explained is None:
            traceback.print_exc()
            return 1, ErrorResult(f"{type(error).__name__}: {error}")
        status, message = explained.status, str(explained)
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status, ErrorResult(message)


def check(arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The verb's function and its arguments; raises UsageError before heavy imports."""
    if not _has_folder():
        raise UsageError("the current folder has been removed; change to another one")
    changes, rest = _split_changes(arguments)
    verb, values = _parse(rest)
    if changes and "config" not in values:
        raise UsageError(f"{verb} has no flag --config.{changes[0][0]}")
    if workdir := values.get("workdir"):
        paths.require_writable_folder("--workdir", workdir)
    if verb == "index":
        paths.require_writable_folder("--index", values["index"])
    destination = values.get("destination")
    if destination and not is_bucket(destination):  # it is replaced as a whole
        paths.require_writable_folder("--destination", absolute(destination).parent)
    flags = [values.pop(name) for name in DISTRIBUTED_FLAGS if name in values]
    cluster = distributed.parse_flags(*flags) if flags else None
    if "config" in values:
        load = _load_plan if VERBS[verb].sweeps else _load_config
        values["config"] = load(values, changes)
    console.quiet_libraries()
    libtpu.quiet_without_chips()
    if flags:
        distributed.initialize(cluster)
    module, _, function = VERBS[verb].target.partition(":")
    return getattr(importlib.import_module(module), function), values


def _load_config(values: dict[str, Any], changes: list[tuple[str, str]]) -> ConfigDict:
    """The config of one run, with the changes of the command line."""
    if values["config"] is None:
        config = overrides.load_json(values["workdir"] / "config.json")
    else:
        config = overrides.load(paths.check_path("--config", values["config"]))
    for key, text in changes:
        overrides.override(config, key, text)
    overrides.check_paths(config)
    validate(config)
    return config


def _load_plan(values: dict[str, Any], changes: list[tuple[str, str]]) -> plan.Plan:
    """The configs of a sweep, with the changes of the command line to its base."""
    return plan.load(paths.check_path("--config", values["config"]), changes)


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _split_changes(arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(key, value) of every `--config.KEY=VALUE` or `--config.KEY VALUE`, and the rest."""
    changes, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise UsageError(f"--config.{key} has no value; use --config.{key}=VALUE")
        changes.append((key, value))
    return changes, rest


def _parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb, and the values of its words and of all of its flags except `--json`.

    The verb is the first word that is neither a flag nor its value. What comes after `--` is words.
    """
    valued = {flag for verb in VERBS.values() for flag in verb.valued()}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, after = arguments[:end], arguments[end + 1 :]
    pairs = enumerate(itertools.pairwise(["", *arguments]))
    words = [i for i, (before, word) in pairs if word[:1] != "-" and before not in valued]
    if not words:
        if "--json" not in arguments:
            print(_parsers()[""].format_help(), end="", file=sys.stderr)
        raise UsageError(f"no verb given; use one of {', '.join(VERBS)}")
    verb, *more = [arguments[i] for i in words]
    if verb not in VERBS:
        raise UsageError(f"unknown verb {verb!r}{_nearest(verb, list(VERBS))}")
    known = [*VERBS[verb].names(), "--json"]
    for word in arguments:  # argparse would report the missing required flag, not the typo
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UsageError(f"{verb} has no flag {word}{_nearest(name, known)}")
    more += after
    if more and not VERBS[verb].words:
        raise UsageError(
            f"unexpected argument {more[0]!r}; all arguments except the verb begin with --"
        )
    flags = [word for i, word in enumerate(arguments) if i not in words]
    values = vars(_parsers()[verb].parse_args([*flags, *(["--", *more] if more else [])]))
    del values["json"]  # `main` handles it
    return verb, values


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """The subparser of each verb, and under "" the main parser."""
    main_parser = _Parser(
        prog="python run.py",
        usage="%(prog)s VERB --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...] [--json]",
        epilog="%(prog)s VERB --help lists the flags of a verb.",
        allow_abbrev=False,
    )
    verbs = main_parser.add_subparsers(title="verbs", metavar="VERB", prog=main_parser.prog)
    for name, verb in VERBS.items():
        parser = verbs.add_parser(name, help=verb.help, description=verb.help, allow_abbrev=False)
        if verb.one_of:
            group = parser.add_mutually_exclusive_group(required=True)
            for flag, options in verb.one_of:
                group.add_argument(flag, **options)
        for flag, options in (*verb.flags, *([verb.words] if verb.words else [])):
            parser.add_argument(flag, **options)
        help_text = "print one JSON object to stdout and everything else to stderr"
        parser.add_argument("--json", action="store_true", help=help_text)
    return {"": main_parser, **verbs.choices}


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else f"; the choices are {', '.join(known)}"

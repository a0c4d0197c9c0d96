"""The command line: `python run.py VERB --config=FILE --workdir=DIR [--config.KEY=VALUE] [--json]`.

Everything is checked before a verb's module is imported, so that a mistake is
answered at once. Exit status: 0 done, 1 the answer is no or the data is bad, 2 used wrongly.
"""

import argparse
import difflib
import importlib
import re
import sys
import traceback
from typing import Any, NoReturn

from hvp_jax import console, distributed, overrides
from hvp_jax.config import validate
from hvp_jax.errors import BadUse, UserError
from hvp_jax.verbs import ACROSS, FLAGS, VERBS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadUse(message)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` as in sys.argv[1:]."""
    arguments = sys.argv[1:] if arguments is None else arguments
    status = 1
    try:
        if {"--help", "-h"} & set(arguments):
            status = 0
            print(help_text(arguments), flush=True)
            return status
        answer = console.claim_stdout() if "--json" in arguments else None
        status, result = _attempt(arguments)
        if answer or distributed.is_first():
            console.give(result, answer)
    except BrokenPipeError:
        pass  # whoever read us wants no more; the status still tells how it went
    if status:
        distributed.leave(status)
    return status


def _attempt(arguments: list[str]) -> tuple[int, dict[str, Any] | str]:
    """The exit status and the verb's result, or the error's message, already on stderr."""
    try:
        run, values = check(arguments)
        result = run(**values)
        return (0 if result.get("ok", True) else 1), result
    except UserError as error:
        status, message = error.status, re.sub(r"\s*\n\s*", " ", str(error)).strip()
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except Exception as error:
        traceback.print_exc()
        return 1, f"{type(error).__name__}: {error}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status, message


def check(arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The verb's function and its arguments. Raises BadUse before anything heavy is imported."""
    changes, rest = _split_changes(arguments)
    verb, values = _parse(rest)
    takes = VERBS[verb].required + VERBS[verb].optional
    if changes and "config" not in takes:
        raise BadUse(f"{verb} takes no --config.{changes[0][0]}")
    if values.get("workdir") and values["workdir"].is_file():
        raise BadUse(f"--workdir={values['workdir']} is a file; it must be a folder")
    together = None
    if set(ACROSS) <= set(takes):
        together = distributed.check(*(values.pop(name) for name in ACROSS))
    if "config" in takes:
        if values["config"] is None:
            config = overrides.load_json(values["workdir"] / "config.json")
        else:
            config = overrides.load(values["config"])
        for key, text in changes:
            overrides.override(config, key, text)
        validate(config)
        values["config"] = config
    console.quiet_libraries()
    if set(ACROSS) <= set(takes):
        distributed.start(together)
    module, _, function = VERBS[verb].target.partition(":")
    return getattr(importlib.import_module(module), function), values


def _split_changes(arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(key, value) of every `--config.KEY=VALUE` or `--config.KEY VALUE`, and what is left."""
    changes, rest, waiting = [], [], iter(arguments)
    for argument in waiting:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            value = next(waiting, None)
            if value is None or value.startswith("--"):
                raise BadUse(f"--config.{key} has no value; say --config.{key}=VALUE")
        changes.append((key, value))
    return changes, rest


def _parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb and the value of each of its flags but `--json`."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name, flag in FLAGS.items():
        parser.add_argument(f"--{name}", choices=flag.choices)
    parser.add_argument("--json", action="store_true")
    given, others = parser.parse_known_args(arguments)
    for other in others:
        if other.startswith("-"):
            hint = _nearest(other.partition("=")[0], [f"--{name}" for name in (*FLAGS, "json")])
            raise BadUse(f"unknown argument {other!r}{hint}")
    if not others:
        if not given.json:
            print(help_text([]), file=sys.stderr)
        raise BadUse(f"no verb given; it is one of {', '.join(VERBS)}")
    verb, *rest = others
    if verb not in VERBS:
        raise BadUse(f"unknown verb {verb!r}{_nearest(verb, list(VERBS))}")
    if rest:
        raise BadUse(f"unexpected argument {rest[0]!r}; every argument but the verb begins with --")
    return verb, _values(verb, given)


def _values(verb: str, given: argparse.Namespace) -> dict[str, Any]:
    """The verb's flags with their values. Raises BadUse for one too many or one that lacks."""
    required, optional = VERBS[verb].required, VERBS[verb].optional
    values = {}
    for name, flag in FLAGS.items():
        text = getattr(given, name)
        if name not in required + optional:
            if text is not None:
                raise BadUse(f"{verb} takes no --{name}")
        elif text:
            values[name] = flag.kind(text)
        elif text == "" or name in required:
            raise BadUse(f"{verb} needs --{name}={flag.metavar}")
        else:
            values[name] = flag.default
    given_of = [name for name in VERBS[verb].one_of if values[name] is not None]
    if VERBS[verb].one_of and len(given_of) != 1:
        flags = [f"--{name}" for name in VERBS[verb].one_of]
        if given_of:
            raise BadUse(f"{verb} takes {' or '.join(flags)}, not both")
        ways = [f"--{name}={FLAGS[name].metavar}" for name in VERBS[verb].one_of]
        raise BadUse(f"{verb} needs {' or '.join(ways)}")
    return values


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def help_text(arguments: list[str]) -> str:
    """The flags of the verb among `arguments`, or the list of verbs if there is none."""
    verb = next((word for word in arguments if word in VERBS), None)
    if verb is None:
        lines = [
            "python run.py VERB --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...] [--json]"
        ]
        lines += [f"  {name:<10}{entry.help}" for name, entry in VERBS.items()]
        return "\n".join([*lines, "python run.py VERB --help tells the flags of a verb."])
    entry = VERBS[verb]
    lines = [f"python run.py {verb}: {entry.help}"]
    for name in entry.required + entry.optional:
        flag = FLAGS[name]
        says = flag.help + (f": {', '.join(flag.choices)}" if flag.choices else "")
        says += " (required)" if name in entry.required else ""
        lines.append(f"  --{f'{name}={flag.metavar}':<22} {says}")
        if name == "config":
            lines.append(f"  {'--config.KEY=VALUE':<24} another value for a key of configs/base.py")
    return "\n".join([*lines, f"  {'--json':<24} one JSON object on stdout, all else on stderr"])

"""The output of a command: the result on stdout, logs and progress on stderr."""

import errno
import io
import json
import logging
import os
import sys
from typing import Any, TextIO

import absl.flags
import absl.logging

from hvp_jax.monitoring.json_files import to_json_types


def quiet_libraries() -> None:
    """Logs this project at INFO and libraries at WARNING, all to stderr."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    for name in ("hvp_jax", "data"):
        logging.getLogger(name).setLevel(logging.INFO)
    absl.logging.set_verbosity(absl.logging.WARNING)
    absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for parsed flags


def print_any_text() -> None:
    """Escapes what a terminal cannot show: a caption where the locale is ASCII, or the name of a
    file that is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def claim_stdout() -> TextIO:
    """The real stdout, reserved for the JSON: file descriptor 1 is stderr from here on.

    It is never restored, because C libraries flush their buffers when the process ends.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed")
    sys.stdout.flush()
    json_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return json_stream


def print_result(result: Any, json_stream: TextIO | None) -> None:
    """Prints a verb's result, which is a dataclass.

    To `json_stream`, if given, as one JSON object; else to stdout, as its `text`, which is not
    part of the JSON, or as a line per field.
    """
    fields = to_json_types(result)
    text = fields.pop("text", None) or getattr(result, "text", None)
    if json_stream:
        with json_stream:
            print(json.dumps(fields, allow_nan=False), file=json_stream)
    else:
        print(readable(fields) if text is None else text, flush=True)


def readable(result: dict[str, Any], indent: str = "") -> str:
    """A line per field; the fields of a dict are indented."""
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", readable(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)

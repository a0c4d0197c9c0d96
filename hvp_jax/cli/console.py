"""What a command says: the answer on stdout, logs and progress on stderr."""

import json
import logging
import os
import sys
from typing import Any, TextIO

import absl.flags
import absl.logging

from hvp_jax.monitoring.json_files import to_json_types


def quiet_libraries() -> None:
    """Our progress at INFO, theirs at WARNING, all of it on stderr."""
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


def claim_stdout() -> TextIO:
    """The real stdout, for the answer alone: file descriptor 1 is stderr from here on.

    It stays so, because what a C library has buffered comes out when the process ends.
    """
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answer


def print_result(result: Any, answer: TextIO | None) -> None:
    """Prints a verb's result: as one JSON object on `answer`, else as text on stdout.

    A person reads the `text` of the result, which is no part of the JSON, or else its fields.
    """
    found = to_json_types(result)
    text = found.pop("text", None) or getattr(result, "text", None)
    if answer:
        with answer:
            print(json.dumps(found, allow_nan=False), file=answer)
    else:
        print(readable(found) if text is None else text, flush=True)


def readable(result: dict[str, Any], indent: str = "") -> str:
    lines = []
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", readable(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)

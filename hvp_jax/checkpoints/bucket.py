"""Checkpoints in a bucket: how long it may not answer, and what it says then.

Orbax reads and writes with TensorStore, gcsfs and Google's own client, each with errors of its
own.
"""

import re

from orbax.checkpoint._src.serialization import tensorstore_utils

from data.storage import faults, files
from data.storage.path import Path, PathLike, is_bucket

COMMITTED = "commit_success.txt"  # Orbax writes it last
# About two minutes, with waits that double from one second. TensorStore's default is 15 minutes.
RETRIES = {"max_retries": 7, "initial_delay": "1s", "max_delay": "32s"}
STATUS = re.compile(r"http_response_code='(\d+)'")
MESSAGE = re.compile(r'"message\\?": \\?"([^"\\]*)')
NO_ANSWER = re.compile(r"retry attempts failed|^(UNAVAILABLE|DEADLINE_EXCEEDED)")


def limit_retries() -> None:
    """Bounds the time for which TensorStore repeats a request; Orbax has no option for that."""
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        getattr(tensorstore_utils, name)["gcs_request_retries"] = RETRIES


def fault(error: BaseException | None, path: PathLike) -> OSError | None:
    """The fault of the bucket that an error, or one of its causes, reports; None if it is none.

    That an object is not there is no fault of the bucket.
    """
    while error is not None and is_bucket(path):
        if isinstance(error, FileNotFoundError):
            return None
        if isinstance(error, OSError) and error.filename and is_bucket(error.filename):
            return error
        text, module = str(error), type(error).__module__
        if found := STATUS.search(text):
            if found[1] == "404":
                return None
            message = MESSAGE.search(text)
            return faults.from_status(int(found[1]), str(path), message[1] if message else "")
        if NO_ANSWER.search(text):
            return faults.no_connection(str(path), error)
        if module.startswith("google.auth"):
            return faults.no_connection(str(path), error)
        if module.startswith("google.api_core"):
            return faults.from_status(getattr(error, "code", None) or 503, str(path), text)
        error = error.__cause__ or error.__context__
    return None


def remove_partial(path: Path) -> None:
    """Removes steps that a run was killed in the midst of writing or removing."""
    for name in files.names(path):
        if name.isdigit() and COMMITTED not in files.names(path / name):
            files.remove_tree(path / name)

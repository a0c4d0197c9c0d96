"""The paths that users give, by a flag or a config key: and what is wrong with them.

A shell expands `~` and `$NAME` only where it sees them: not in `--workdir=~/run`, not in quotes,
not in a config file. Taken literally they would make folders of these names.
"""

import importlib.util
import os
import re
import unicodedata
from typing import Literal

from data.errors import UsageError
from data.storage.path import is_bucket

# "arrays": a folder that Orbax, TensorStore or ArrayRecord reads, which know gs:// only.
# "local": a folder on this machine's disks.
Kind = Literal["any", "file", "folder", "arrays", "local"]

QUOTES = "\"'“”‘’"
INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode categories: control, format, spaces
# hf://, https://, host:/folder, user@host:/folder
REMOTE = re.compile(r"[\w.+@-]{2,}:/")
BUCKET_URL = re.compile(r"(gs|s3):/+", re.IGNORECASE)
BUCKET_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
PATTERN = re.compile(r"[*?\[\]#]")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
VARIABLE = re.compile(r"\$(?:\{[^}]*\}?|[A-Za-z_]\w*)")

NOT_IN_S3 = (
    "checkpoints and shards can be read and written on this machine's disks and in gs://, not in "
    "s3://; choose a folder there"
)


def check_path(name: str, text: str, kind: Kind = "any") -> str:
    """The path that the flag or config key `name` gives, with `~` and `$NAME` expanded.

    It need not exist. Raises UsageError if it is neither on this machine's disks nor in a bucket,
    has characters that nobody means, exists and cannot be read, or is not of the `kind` that is
    needed. A bucket is not looked at: its paths lose a slash at the end and doubled ones.
    """
    shown = f"{name}={text}"
    if not text:
        raise UsageError(f"{name} is empty; give a path")
    if not os.path.lexists(text):  # a name that exists is meant as it is
        _refuse_stray_characters(name, text)
    path = _expand_user(shown, _expand_variables(shown, text))
    if path != text:
        shown = f"{name}={text} ({path})"
    try:  # what is not text in UTF-8 cannot be passed to the libraries that write in C++
        path.encode()
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(
            f"{shown} is not UTF-8 in this locale: `export PYTHONUTF8=1`, and if that does not "
            "help rename it"
        ) from None
    if WINDOWS.match(path):
        raise UsageError(f"{shown} is a path of Windows; under WSL, C:\\x is /mnt/c/x")
    if path.startswith("file:/"):
        raise UsageError(f"{shown} is a URL; write /{path.removeprefix('file:').lstrip('/')}")
    if BUCKET_URL.match(path):
        return _check_in_bucket(shown, path, kind)
    if REMOTE.match(path):
        raise UsageError(
            f"{shown} is neither on this machine nor in a bucket, gs://NAME/... or s3://NAME/...; "
            "mount it or copy it"
        )
    _check_on_disk(shown, path, kind)
    return path


def require_writable_folder(name: str, path: str | os.PathLike) -> None:
    """Raises UsageError unless files can be written to a folder, or it can be made.

    A bucket is not asked: it answers when the first file is written.
    """
    if is_bucket(path):
        return
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    where = f"{name}={path}"
    if existing != os.path.abspath(path):
        where += f" cannot be made: {existing}"
    if not os.path.isdir(existing):
        kind = "a file" if os.path.exists(existing) else "a link to nothing"
        raise UsageError(f"{where} is {kind}; it must be a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"{where} cannot be written to by this user, or its disk is read-only; choose another "
            "folder"
        )


def _refuse_stray_characters(name: str, text: str) -> None:
    """Refuses what quoting, copying and line endings of Windows leave in a path."""
    stray = [c for c in text if unicodedata.category(c) == "Cc"]
    stray += [c for c in (text[0], text[-1]) if unicodedata.category(c) in INVISIBLE]
    if not stray and len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        stray = [text[0]]
    if stray:
        raise UsageError(
            f"{name}={ascii(text)} contains {ascii(stray[0])}, which is hardly part of the path; "
            "remove it"
        )


def _expand_variables(shown: str, text: str) -> str:
    """The value of each `$NAME` and `${NAME}`, unless the path exists as it is written."""
    if "$" not in text:
        return text
    path = os.path.expandvars(text)
    if (rest := VARIABLE.search(path)) and not os.path.lexists(path):
        raise UsageError(
            f"{shown}: there is no environment variable for {rest[0]}; export it or write the "
            "path out"
        )
    return path


def _expand_user(shown: str, text: str) -> str:
    if not text.startswith("~"):
        return text
    user = text.partition("/")[0]
    if user != "~":
        path = os.path.expanduser(text)
        reason = f"there is no user {user[1:]}; for a file of this name write ./{user}"
    else:
        # Python would make /run of ~/run if HOME is set and empty.
        path = os.path.expanduser(text) if os.environ.get("HOME", "unset") else text
        reason = "HOME is not set, so ~ means nothing; write the path out"
    if path.startswith("~"):
        raise UsageError(f"{shown}: {reason}")
    return path


def _check_in_bucket(shown: str, path: str, kind: Kind) -> str:
    """The path without empty parts; raises UsageError if it is not one of an object or folder."""
    scheme, _, rest = path.partition(":")
    protocol = scheme.lower()
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    clean = f"{protocol}://{'/'.join(parts)}"
    if not parts:
        raise UsageError(f"{shown} names no bucket; write {protocol}://BUCKET/FOLDER")
    if not path.startswith(f"{protocol}://") or path.startswith(f"{protocol}:///"):
        raise UsageError(f"{shown} is no path in a bucket; write {clean}")
    if ".." in parts:
        raise UsageError(f"{shown}: a bucket has no folder ..; write the path out")
    if not is_bucket(clean):
        raise UsageError(f"{shown}: {parts[0]} cannot be the name of a bucket")
    if found := PATTERN.search(clean):  # its libraries expand patterns
        raise UsageError(f"{shown} has a {found[0]}; choose a name in the bucket without it")
    if kind == "file" and not parts[1:]:
        raise UsageError(f"{shown} is a bucket; it must be a file in it")
    if kind == "local":
        raise UsageError(f"{shown} is in a bucket; it must be a folder on this machine's disks")
    if kind == "arrays" and protocol == "s3":
        raise UsageError(f"{shown}: {NOT_IN_S3}")
    library = BUCKET_LIBRARIES[protocol]
    if importlib.util.find_spec(library) is None:
        raise UsageError(f"{shown} needs {library}: `pip install -r requirements-bucket.txt`")
    return clean


def _check_on_disk(shown: str, path: str, kind: Kind) -> None:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # too long, a file as a folder, a loop of links
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{shown} cannot be a path: {reason}") from None
    if not os.path.exists(path):
        raise UsageError(f"{shown} is a link to {os.readlink(path)}, which does not exist")
    is_folder = os.path.isdir(path)
    if kind not in ("any", "file") and not is_folder:
        raise UsageError(f"{shown} is a file; it must be a folder")
    if kind == "file" and is_folder:
        raise UsageError(f"{shown} is a folder; it must be a file")
    if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
        raise UsageError(f"{shown} cannot be read by this user; change its permissions")

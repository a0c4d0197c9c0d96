"""Exceptions that the machine causes, not the program, in one line that says what to do."""

import errno
import os
import re
import traceback

from data.errors import DataError, UsageError, UserError
from data.storage.path import is_bucket

NO_BACKEND = re.compile(
    r"Unable to initialize backend '(?P<name>[^']*)': (?P<reason>.*?)"
    r"(?: *\((?:set JAX_PLATFORMS|you may need).*)?$",
    re.DOTALL,
)
IN_USE = re.compile(r"already in use|lockfile|resource busy", re.IGNORECASE)
REQUIREMENTS = {"cuda": "requirements-gpu.txt", "gpu": "requirements-gpu.txt"}
REQUIREMENTS |= {"tpu": "requirements-tpu.txt"}
# What XLA says when a GPU's memory is used up, by this program or another one.
NO_DEVICE_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED.*memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|DNN library initialization failed",
    re.IGNORECASE,
)
ADVICE = {
    errno.ENOSPC: "free some disk space, or set TMPDIR to another disk if this is a temporary file",
    errno.EDQUOT: "your quota of disk space is used up: remove files",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f unlimited`)",
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`) and run the command again",
    errno.ENFILE: "this machine has too many open files: end other programs",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`), or reduce data.workers",
    errno.ENOMEM: "the memory of this machine is used up: end other programs",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EIO: "its disk has a fault",
    errno.ESTALE: "its network disk has changed: mount it again",
}


def explain(error: Exception) -> UserError | None:
    """The error to print instead of `error`; None if the machine is not known to be its cause."""
    if isinstance(error, OSError):
        return _explain_os_error(error)
    text = str(error)
    if isinstance(error, RuntimeError):
        if match := NO_BACKEND.search(text):
            return _no_backend(match["name"], " ".join(match["reason"].split()))
        if text.startswith("Unknown backend"):
            return _no_backend("", text)
        if NO_DEVICE_MEMORY.search(text):
            return DataError(
                f"the memory of the device is used up ({_first_line(text)}): end other programs "
                "that use it, or reduce train.batch_size, eval.batch_size or "
                "similarity.chunk_size, or set model.remat=full"
            )
        if "can't start new thread" in text:
            return DataError(f"{text}: {ADVICE[errno.EAGAIN]}")
    if isinstance(error, AssertionError) and _is_raised_in(error, "xla_bridge.py"):
        # What JAX raises if JAX_PLATFORMS names only cuda, and the plugin for it is missing.
        return _no_backend(os.environ.get("JAX_PLATFORMS", ""), "its plugin is not installed")
    return None


def _explain_os_error(error: OSError) -> UserError | None:
    if "usable temporary directory" in str(error):
        return UsageError(f"{error.strerror}: set TMPDIR to a folder that can be written to")
    if isinstance(error.filename, str) and is_bucket(error.filename):
        return DataError(f"{error.filename}: {error.strerror}")
    if error.errno not in ADVICE:
        return None
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return DataError(f"{where}{error.strerror}; {ADVICE[error.errno]}")


def _no_backend(name: str, reason: str) -> UserError:
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if IN_USE.search(reason):
        return DataError(f"JAX cannot use {name}: {reason}; end the other process that uses it")
    install = f", install {REQUIREMENTS[name]}" if name in REQUIREMENTS else ""
    if wanted:
        return UsageError(
            f"JAX_PLATFORMS is {wanted!r} in the environment, and JAX cannot use it here "
            f"({reason}): unset it{install}, or run on a machine that has the device"
        )
    return DataError(
        f"JAX cannot use {name} here ({reason}): repair it{install}, or set JAX_PLATFORMS=cpu"
    )


def _is_raised_in(error: Exception, file: str) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and os.path.basename(frames[-1].filename) == file


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]

"""The persistent compilation cache: a run that resumes loads its programs, and compiles none.

It is JAX's own: one file for each program. Its name is a hash of the program, its compiler
options, the devices and the version of XLA, so that a file is never used for anything else.
"""

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from data.storage.path import Path, is_bucket
from hvp_jax.parallel.processes import broadcast_from_primary, is_primary

FOLDER = "compile_cache"  # of a workdir
# JAX's default, 1 s, leaves out programs that together take a third of the time on a CPU.
MIN_COMPILE_SECONDS = 0.1

log = logging.getLogger(__name__)


def use_compile_cache(setting: str, workdir: Path | None) -> None:
    """Keeps compiled programs where `setting` says, and loads those that are there already.

    `setting` is "none", a folder, a bucket, or "auto": on an accelerator a folder in the workdir,
    if there is one; on a CPU none. Where JAX_COMPILATION_CACHE_DIR is set, "auto" leaves it as it
    is. All processes of a run call this, before they compile anything large; process 0 alone
    writes, so that the place must be one that all of them see. If it cannot be written to, that is
    logged and the run does without.
    """
    if setting in ("none", ""):
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX decides at its first program, which may have been
        return
    place = _default_place(workdir) if setting == "auto" else setting
    if place is None:
        return
    before = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 - undeclared
    is_set = setting == "auto" and bool(before)
    # All or none, as process 0 says: processes that compile for several GPUs share the work.
    if not broadcast_from_primary(not is_set and (not is_primary() or _prepare(place))):
        return
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    if is_bucket(place):  # XLA's C++ writes to these caches of its own, and knows no bucket
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    compilation_cache.reset_cache()  # else an earlier place stays in use
    warnings.showwarning = _log_cache_warnings(place, warnings.showwarning)


def _default_place(workdir: Path | None) -> str | None:
    if workdir is None or jax.default_backend() == "cpu":
        return None
    return str(workdir / FOLDER)


def _prepare(place: str) -> bool:
    """Makes the folder and writes to it; logs why that fails."""
    probe = epath.Path(place) / f"probe-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except Exception as error:  # of the client library of a bucket too, which may be missing
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        log.warning(
            "compile_cache=%s cannot be written (%s): compiled programs are not kept",
            place,
            " ".join(reason.split()),
        )
        return False
    return True


def _log_cache_warnings(place: str, show: Callable[..., None]) -> Callable[..., None]:
    """A `warnings.showwarning` that logs JAX's warnings of the cache in a line; `show` the rest.

    JAX warns of a file that it cannot write or read, and then uses what it has compiled.
    """

    def log_or_show(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
        if "persistent compilation cache" in str(message):
            text = " ".join(str(message).split())
            log.warning("compile_cache=%s: %s; the program is compiled instead", place, text)
        else:
            show(message, category, *where, **options)

    return log_or_show

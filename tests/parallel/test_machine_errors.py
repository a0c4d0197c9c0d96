"""Exceptions that the machine causes become one line; bugs do not."""

import errno
import tempfile
import threading

import pytest

from data.errors import DataError, UsageError
from hvp_jax.parallel.machine_errors import explain

# As JAX 0.10.2 and its users' reports have them.
NO_TPU = (
    "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so: libtpu.so: cannot open"
    " shared object file (set JAX_PLATFORMS='' to automatically choose an available backend)"
)
NONSENSE = (
    "Unable to initialize backend 'nonsense': Backend 'nonsense' is not in the list of known"
    " backends: ['cpu', 'tpu']. (set JAX_PLATFORMS='' to automatically choose a backend)"
)
NO_GPU = (
    "Unable to initialize backend 'cuda': FAILED_PRECONDITION: No visible GPU devices. (you may"
    " need to uninstall the failing plugin package, or set JAX_PLATFORMS=cpu to skip this backend.)"
)
IN_USE = (
    "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 7."
    " Not attempting to load libtpu.so in this process. (set JAX_PLATFORMS='' to ...)"
)
FULL = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9663676416 bytes.\nAllocator: ..."
)


@pytest.mark.parametrize(
    ("wanted", "text", "kind", "expected"),
    [
        ("tpu", NO_TPU, UsageError, "JAX_PLATFORMS is 'tpu' .*requirements-tpu.txt"),
        ("nonsense", NONSENSE, UsageError, r"JAX_PLATFORMS is 'nonsense' .*\['cpu', 'tpu'\]"),
        ("cuda", NO_GPU, UsageError, r"\(FAILED_PRECONDITION: No visible GPU devices\.\): unset"),
        ("", NO_GPU, DataError, r"cannot use cuda here .*or set JAX_PLATFORMS=cpu$"),
        ("", IN_USE, DataError, "already in use by process with pid 7.*; end the other process"),
        ("tpu", "Unknown backend: 'cpu' requested", UsageError, "JAX_PLATFORMS is 'tpu'"),
        ("", FULL, DataError, r"\(RESOURCE_EXHAUSTED: Out of memory .* bytes\.\): .*batch_size"),
        ("", "can't start new thread", DataError, "ulimit -u"),
    ],
)
def test_devices(monkeypatch, wanted, text, kind, expected):
    monkeypatch.setenv("JAX_PLATFORMS", wanted)
    explained = explain(RuntimeError(text))
    assert type(explained) is kind and "\n" not in str(explained)
    with pytest.raises(kind, match=expected):
        raise explained


def test_a_platform_whose_plugin_is_missing(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    try:  # JAX raises this without a message
        exec(compile("assert False", "site-packages/jax/_src/xla_bridge.py", "exec"))
    except AssertionError as error:
        assert "JAX_PLATFORMS is 'cuda'" in str(explain(error))
    try:
        exec(compile("assert False", "hvp_jax/training/loop.py", "exec"))
    except AssertionError as error:
        assert explain(error) is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, "/x/y: No space left on device; free some disk space"),
        (errno.EMFILE, "/x/y: Too many open files; .*ulimit -n"),
        (errno.EROFS, "/x/y: Read-only file system; choose"),
        (errno.EACCES, "/x/y: Permission denied; "),
    ],
)
def test_the_operating_system(code, expected):
    import os

    with pytest.raises(DataError, match=expected):
        raise explain(OSError(code, os.strerror(code), "/x/y"))


def test_no_temporary_directory(monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(OSError) as raised:
        tempfile.mkdtemp()
    with pytest.raises(UsageError, match=r"'/nowhere'.*set TMPDIR"):
        raise explain(raised.value)


IN_BUCKET = "gs://bucket/run/checkpoints/2/params"
TENSORSTORE = (
    f"PERMISSION_DENIED: Error reading {IN_BUCKET}/manifest.ocdbt: no right "
    "[tensorstore_spec='{...}']\n[source locations='...']"
)


class LibraryError(Exception):
    __module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "it answers 503", "gs://bucket/a"), "^gs://bucket/a: it answers 503$"),
        (
            FileNotFoundError(errno.ENOENT, "no such object", "s3://b/a"),
            "^s3://b/a: no such object",
        ),
        (FileNotFoundError("gs://bucket/a/b"), "^gs://bucket/a/b: there is no such object"),
        (ValueError(TENSORSTORE), f"^{IN_BUCKET}/manifest.ocdbt: PERMISSION_DENIED: .* no right$"),
        (LibraryError("no profile x"), "^the bucket cannot be reached: no profile x$"),
    ],
)
def test_a_bucket(error, expected):
    explained = explain(error)
    assert explained is not None and explained.status == 1
    with pytest.raises(DataError, match=expected):
        raise explained


def test_bugs_keep_their_traceback():
    for error in (
        ValueError("shapes of gs://bucket/a"),
        KeyError("gs://bucket/a"),
        ValueError("shapes"),
        RuntimeError("shapes"),
        KeyError("x"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
        threading.BrokenBarrierError(),
    ):
        assert explain(error) is None

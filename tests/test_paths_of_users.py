"""Only data/storage opens files by a path that a user may give: it knows disks and buckets.

This reads the code, so that a new `open(path)` is noticed before a path in a bucket meets it. What
computes with the text of a path, such as os.path.join, or takes an open file may be used anywhere.
"""

import ast
import functools
from collections.abc import Iterator

import pytest

from tests.helpers.command import ROOT

MODULES = {"fileinput", "glob", "pathlib", "shutil", "tempfile"}
ARRAYS = "fromfile genfromtxt load loadtxt memmap save savetxt savez savez_compressed"
FUNCTIONS = {
    "os": (
        "access chmod chown link listdir lstat makedirs mkdir open readlink remove removedirs "
        "rename renames replace rmdir scandir stat statvfs symlink truncate unlink utime walk"
    ),
    "os.path": (
        "abspath exists getatime getctime getmtime getsize isdir isfile islink ismount lexists "
        "realpath samefile"
    ),
    "np": ARRAYS,
    "numpy": ARRAYS,
    "av": "open",
    "bz2": "open",
    "codecs": "open",
    "gzip": "open",
    "io": "open",
    "zipfile": "ZipFile is_zipfile",
}
METHODS = {"absolute", "chmod", "lstat", "rename", "stat", "symlink_to", "touch"}  # of paths
OPEN_FILES = {"file", "content"}  # variables with these names are files that are open already

SYSTEM = "a file of the operating system"
DISK = "a path on a disk; one in a bucket has taken another branch"
COPY = "a video file on a disk, or the local copy of one in a bucket"
ALLOWED = {  # "file" or "file:function" -> why its paths are not in a bucket
    "data/annotations/common.py:walk": DISK,
    "data/annotations/common.py:_is_new": DISK,
    "data/annotations/common.py:_real_path": DISK,
    "data/batches/shared_memory.py:_free": SYSTEM,
    "data/checks/quick_check.py:_find_faults": COPY,
    "data/paths.py": "it checks a path on a disk; one in a bucket has returned before",
    "data/shards/prepare.py": "a temporary folder, and the space on a disk",
    "data/shards/staging.py": "a temporary folder or file of a shard, or a path on a disk",
    "data/synthetic/shapes.py": "clips are drawn in a folder on a disk and uploaded from there",
    "data/time_limit.py:processor_seconds": SYSTEM,
    "data/video/decode.py": COPY,
    "data/video/file_faults.py": COPY,
    "data/video/inspection.py": COPY,
    "data/worker_pool.py": "a temporary folder for local copies",
    "data/worker_process.py": "a temporary folder for local copies, and /proc",
    "hvp_jax/cli/verbs/port.py": "a folder on a disk is built under another name beside it",
    "hvp_jax/cli/verbs/sweep.py:run": "run.py itself",
    "hvp_jax/monitoring/environment.py": "this package's own folder, for its commit",
    "hvp_jax/monitoring/metric_rows/files.py:_RowsInFile.__init__": DISK,
    "hvp_jax/monitoring/process_identity.py": SYSTEM,
    "hvp_jax/monitoring/profiler.py": "the profiler writes to a temporary folder",
    "hvp_jax/monitoring/workdir_lock.py:WorkdirLock._renew": DISK,
    "hvp_jax/parallel/distributed.py": SYSTEM,
    "hvp_jax/parallel/libtpu.py": SYSTEM,
    "hvp_jax/sweeps/execution/runs.py:Run.start": "a sweep's folder is on a disk, for its logs",
    "hvp_jax/weights/export.py:export_weights": "a local file, to be uploaded if need be",
}


@functools.cache
def sources() -> dict[str, str]:
    """The text of every source file outside data/storage, by its path."""
    files = [
        path for name in ("hvp_jax", "data", "configs") for path in (ROOT / name).rglob("*.py")
    ]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in (*files, ROOT / "run.py")}
    return {name: text for name, text in texts.items() if not name.startswith("data/storage/")}


def uses_of_disks(node: ast.AST, function: str = "") -> Iterator[tuple[str, int, str]]:
    """(function, line, what) of everything in a source that takes a path on a disk."""
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".lstrip(".")
        for what in _imported(child) if isinstance(child, ast.Import | ast.ImportFrom) else ():
            yield function, child.lineno, f"import {what}"
        if isinstance(child, ast.Call) and (what := _called(child)):
            yield function, child.lineno, what
        yield from uses_of_disks(child, inner)


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    module = getattr(node, "module", None)
    for alias in node.names:
        if (module or alias.name).partition(".")[0] in MODULES:
            yield module or alias.name
        elif alias.name in FUNCTIONS.get(module or "", "").split():
            yield f"{module}.{alias.name}"


def _called(call: ast.Call) -> str:
    """What is called, if it takes the path of a file; else ""."""
    called, first = ast.unparse(call.func), ast.unparse(call.args[0]) if call.args else ""
    owner, _, name = called.rpartition(".")
    if first in OPEN_FILES:
        return ""
    if called == "open" or name in FUNCTIONS.get(owner, "").split():
        return called
    is_method = isinstance(call.func, ast.Attribute) and owner not in ("storage", "files")
    return f".{name}()" if is_method and name in METHODS else ""


def refused(file: str, text: str) -> list[str]:
    found = uses_of_disks(ast.parse(text))
    return [
        f"{file}:{line}: {what}"
        for function, line, what in found
        if not {file, f"{file}:{function}"} & ALLOWED.keys()
    ]


def test_only_storage_opens_files_by_a_path():
    assert [line for file, text in sources().items() for line in refused(file, text)] == []


def test_every_exception_is_needed():
    used: set[str] = set()
    for file, text in sources().items():
        for function, _, _ in uses_of_disks(ast.parse(text)):
            used |= {file, f"{file}:{function}"}
    assert ALLOWED.keys() - used == set()


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "with open(path, 'ab') as log: pass",
        "from pathlib import Path",
        "import shutil, json",
        "from tempfile import mkdtemp",
        "x = os.path.exists(path)",
        "from os.path import isfile",
        "os.replace(a, b)",
        "np.load(path)",
        "np.savez(path, x=1)",
        "av.open(path)",
        "Path(path).stat().st_size",
        "path.absolute()",
        "(folder / 'x').touch()",
    ],
)
def test_what_is_added_to_a_file_is_found(line):
    file = "hvp_jax/training/loop.py"
    text = sources()[file]
    assert refused(file, text) == []
    added = f"{text}\n\ndef f(path, folder, a, b):\n    {line}\n"
    (found,) = refused(file, added)
    assert found.startswith(f"{file}:{added.count(chr(10))}: ")


@pytest.mark.parametrize(
    "line",
    [
        "os.path.join(a, b)",
        "storage.stat(path)",
        "np.load(file)",
        "text.replace(a, b)",
        "self.open(path)",
        "os.fsync(file.fileno())",
    ],
)
def test_what_takes_no_path_of_a_file_is_allowed(line):
    assert refused("hvp_jax/training/loop.py", f"def f():\n    {line}\n") == []

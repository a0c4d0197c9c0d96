"""Files of tensors: safetensors, PyTorch's pickles and TorchScript archives.

A tensor is read as float32 when it is looked up, and its source is freed then, so that at
most one copy of a checkpoint is in memory beside the parameters made of it. The libraries map a
file: one in a bucket is copied to a temporary folder while its tensors may be read.
"""

import contextlib
import pickle
import pickletools
import re
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from data.errors import DataError, UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.models.clip_config import Shape

Reader = Callable[[], np.ndarray]
NEEDS_TORCH = "is a PyTorch pickle: to read it, install PyTorch (requirements-torch.txt)"
# The types of weights: safetensors' names and PyTorch's.
FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")


class LazyTensors(Mapping[str, np.ndarray]):
    """float32 arrays by name, in the file's order. A tensor may be read only once."""

    def __init__(self, readers: dict[str, Reader], shapes: dict[str, Shape]) -> None:
        self._readers, self.shapes = readers, shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def renamed(self, new: Mapping[str, str]) -> "LazyTensors":
        return LazyTensors(
            {new[name]: reader for name, reader in self._readers.items()},
            {new[name]: shape for name, shape in self.shapes.items()},
        )

    def without(self, excluded: Mapping | set) -> "LazyTensors":
        names = [name for name in self._readers if name not in excluded]
        return LazyTensors(
            {name: self._readers[name] for name in names},
            {name: self.shapes[name] for name in names},
        )

    def with_tensor(self, name: str, shape: Shape, reader: Reader) -> "LazyTensors":
        """A copy in which `name` has this shape and is read by `reader`."""
        return LazyTensors({**self._readers, name: reader}, {**self.shapes, name: shape})


def open_files(paths: tuple[Path, ...]) -> tuple[LazyTensors, dict[str, Any]]:
    """The tensors of all files, and the other entries of a single pickle: optimizer, steps."""
    readers: dict[str, Reader] = {}
    shapes: dict[str, Shape] = {}
    extras: dict[str, Any] = {}
    for path in paths:
        tensors, extras = _open(path)
        readers |= tensors._readers
        shapes |= tensors.shapes
    return LazyTensors(readers, shapes), extras


class _LocalFile:
    """A file on this machine's disks: the one at `path`, or a copy that lives as long as this."""

    def __init__(self, path: Path) -> None:
        copies = contextlib.ExitStack()
        self.path = path
        self.local = copies.enter_context(storage.local_copy(path))
        weakref.finalize(self, copies.close)


def _open(path: Path) -> tuple[LazyTensors, dict[str, Any]]:
    try:
        file = _LocalFile(path)
        with storage.open_read(file.local) as content:
            head = content.read(9)
            is_archive = zipfile.is_zipfile(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise DataError(f"{path}: is empty")
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _safetensors(file), {}
    if head[:4] == b"PK\x03\x04":
        if not is_archive:
            raise DataError(f"{path}: is truncated; download it again")
        with storage.open_read(file.local) as content, zipfile.ZipFile(content) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return _torchscript(file), {}
    elif head[:1] != b"\x80":
        raise DataError(f"{path}: is neither safetensors nor a PyTorch checkpoint")
    return _pickle(file, is_archive)


def _safetensors(file: _LocalFile) -> LazyTensors:
    import ml_dtypes  # noqa: F401  # gives NumPy the type bfloat16
    import safetensors

    try:
        with safetensors.safe_open(file.local, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            shapes = {name: tuple(x.get_shape()) for name, x in slices.items()}
            types = {name: str(x.get_dtype()) for name, x in slices.items()}
    except Exception as error:  # the library raises a different type for each defect
        raise DataError(f"{file.path}: is not a complete safetensors file ({error})") from None

    def reader(name: str) -> Reader:
        def read() -> np.ndarray:
            _require_float(file.path, name, types[name])
            # Opened for each tensor, because the pages read of a mapped file stay in memory.
            with safetensors.safe_open(file.local, framework="numpy") as opened:
                return np.array(opened.get_tensor(name), np.float32)

        return read

    return LazyTensors({name: reader(name) for name in shapes}, shapes)


def _require_float(path: Path, name: str, type: str) -> None:
    """Quantised weights mean nothing without their scales, which each library keeps elsewhere."""
    if type.removeprefix("torch.") not in FLOATS:
        raise DataError(
            f"{path}: {name} is of type {type}, so the weights are quantised; "
            "convert them to float16 or float32 first"
        )


def to_numpy(tensor: Any) -> np.ndarray:
    """A PyTorch tensor as a float32 array."""
    import torch

    return tensor.detach().to("cpu", torch.float32).numpy()


def _import_torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise UsageError(f"{path} {NEEDS_TORCH}") from None
    return torch


def _torchscript(file: _LocalFile) -> LazyTensors:
    path, torch = file.path, _import_torch(file.path)
    try:
        state = torch.jit.load(file.local, map_location="cpu").state_dict()
    except Exception as error:
        raise DataError(
            f"{path}: not a complete TorchScript archive ({_first_line(error)})"
        ) from None
    return _state_dict(path, state)


def _pickle(file: _LocalFile, is_archive: bool) -> tuple[LazyTensors, dict[str, Any]]:
    path, torch = file.path, _import_torch(file.path)
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            content = torch.load(file.local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = _refused_global(None if is_archive else file.local, str(error))
        if code:
            raise DataError(f"{path}: refused, reading it would run code ({code})") from None
        raise DataError(f"{path}: is not a complete checkpoint ({_first_line(error)})") from None
    except Exception as error:  # PyTorch raises many types for a broken file
        raise DataError(f"{path}: is not a complete checkpoint ({_first_line(error)})") from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            extras = {k: v for k, v in content.items() if k != key}
            return _state_dict(path, content[key]), extras
    return _state_dict(path, content), {}


def _safe_globals() -> list[Any]:
    """What trainers pickle beside tensors: NumPy's numbers, the command line's arguments."""
    import argparse

    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    renamed = (scalar, "numpy.core.multiarray.scalar")  # its name before NumPy 2
    return [scalar, renamed, np.dtype, *dtypes, argparse.Namespace]


def _state_dict(path: Path, tensors: Mapping) -> LazyTensors:
    torch = _import_torch(path)
    state = dict(tensors)
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise DataError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def reader(name: str) -> Reader:
        def read() -> np.ndarray:
            _require_float(path, name, str(state[name].dtype))
            return to_numpy(state.pop(name))

        return read

    return LazyTensors({name: reader(name) for name in shapes}, shapes)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _refused_global(pickled: str | None, message: str) -> str:
    """The name of a function or class that a pickle asked for; "" if it failed otherwise.

    `pickled`: the path of a pickle that PyTorch has not written as an archive.
    """
    match = re.search(r"GLOBAL (\S+)", message)
    if match:
        return match[1]
    if pickled is None:
        return ""
    strings: list[str] = []
    try:  # its opcodes are scanned, not executed
        with storage.open_read(pickled) as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, OSError, UnicodeError):
        pass
    return ""

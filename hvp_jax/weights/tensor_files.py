"""Files of tensors: safetensors, PyTorch's pickles and TorchScript archives.

A tensor is read when it is asked for, as float32, and let go with the asking, so that
no more than one copy of a checkpoint is in memory beside what is made of it.
"""

import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from data.errors import DataError, UsageError
from hvp_jax.models.clip_config import Shape

NEEDS_TORCH = "is a pickle of PyTorch's: to read it, install PyTorch (requirements-torch.txt)"


class LazyTensors(Mapping[str, np.ndarray]):
    """float32 arrays by name, in the file's order. A second look at a tensor may fail."""

    def __init__(self, read: dict[str, Callable[[], np.ndarray]], shapes: dict[str, Shape]):
        self._read, self.shapes = read, shapes

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def renamed(self, new: Mapping[str, str]) -> "LazyTensors":
        return LazyTensors(
            {new[name]: read for name, read in self._read.items()},
            {new[name]: shape for name, shape in self.shapes.items()},
        )

    def without(self, unwanted: Mapping | set) -> "LazyTensors":
        kept = [name for name in self._read if name not in unwanted]
        return LazyTensors(
            {name: self._read[name] for name in kept}, {name: self.shapes[name] for name in kept}
        )


def open_files(paths: tuple[Path, ...]) -> tuple[LazyTensors, dict]:
    """The tensors of all files, and what else a single pickle holds: optimizer, steps."""
    read: dict[str, Callable] = {}
    shapes: dict[str, Shape] = {}
    rest: dict = {}
    for path in paths:
        part, rest = _open(path)
        read |= {name: part._read[name] for name in part}
        shapes |= part.shapes
    return LazyTensors(read, shapes), rest


def _open(path: Path) -> tuple[LazyTensors, dict]:
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if not head:
        raise DataError(f"{path}: is empty")
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _safetensors(path), {}
    if head[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: is cut short; get the file again")
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return _torchscript(path), {}
    elif head[:1] != b"\x80":
        raise DataError(f"{path}: is neither safetensors nor a checkpoint of PyTorch")
    return _pickle(path)


def _safetensors(path: Path) -> LazyTensors:
    # By PyTorch's names for types, for numpy lacks bfloat16; JAX's brings it along.
    import ml_dtypes  # noqa: F401
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except Exception as error:  # the library has an error of its own for each defect
        raise DataError(f"{path}: is no whole safetensors file ({error})") from None

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            # Opened anew, for what a mapped file has shown of itself stays in memory.
            with safetensors.safe_open(path, framework="numpy") as file:
                return np.array(file.get_tensor(name), np.float32)

        return read

    return LazyTensors({name: reader(name) for name in shapes}, shapes)


def to_numpy(tensor) -> np.ndarray:
    """A tensor of PyTorch as float32."""
    import torch

    return tensor.detach().to("cpu", torch.float32).numpy()


def _import_torch(path: Path):
    try:
        import torch
    except ImportError:
        raise UsageError(f"{path} {NEEDS_TORCH}") from None
    return torch


def _torchscript(path: Path) -> LazyTensors:
    torch = _import_torch(path)
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except Exception as error:
        raise DataError(f"{path}: no whole TorchScript archive ({_first_line(error)})") from None
    return _of_torch(path, state)


def _pickle(path: Path) -> tuple[LazyTensors, dict]:
    torch = _import_torch(path)
    try:
        with torch.serialization.safe_globals(_harmless()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _refused(path, str(error))
        if wanted:
            raise DataError(
                f"{path}: refused, it wants to run code when it is read ({wanted})"
            ) from None
        raise DataError(f"{path}: is no whole checkpoint ({_first_line(error)})") from None
    except Exception as error:  # PyTorch has many ways to say that a file is broken
        raise DataError(f"{path}: is no whole checkpoint ({_first_line(error)})") from None
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: holds a {type(found).__name__}, not tensors by name")
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found.get(key), Mapping):
            return _of_torch(path, found[key]), {k: v for k, v in found.items() if k != key}
    return _of_torch(path, found), {}


def _harmless() -> list:
    """What trainers pickle beside tensors: numbers of NumPy, arguments of the command line."""
    import argparse

    scalar, dtype = np.float64(0).__reduce__()[0], np.dtype
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    return [
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
        dtype,
        *kinds,
        argparse.Namespace,
    ]


def _of_torch(path: Path, state: Mapping) -> LazyTensors:
    torch = _import_torch(path)
    state = dict(state)
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise DataError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def reader(name: str) -> Callable[[], np.ndarray]:
        return lambda: to_numpy(state.pop(name))

    return LazyTensors({name: reader(name) for name in shapes}, shapes)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _refused(path: Path, message: str) -> str:
    """What a pickle asked for that is no tensor, or nothing if that is not why it failed."""
    named = re.search(r"GLOBAL (\S+)", message)
    if named:
        return named[1]
    if zipfile.is_zipfile(path):
        return ""
    strings: list[str] = []
    try:  # a pickle that is not PyTorch's: look through it, without running it
        with open(path, "rb") as file:
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

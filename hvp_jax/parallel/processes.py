"""The processes of a run: the index of this one, barriers, collectives on host values."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

TEXT_BYTES = 4096


def process_index_and_count() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def all_gather_hosts(part: np.ndarray) -> np.ndarray:
    """A host array of the same shape in each process -> [processes, ...], in all of them."""
    return multihost_utils.process_allgather(part) if jax.process_count() > 1 else part[None]


def barrier(name: str) -> None:
    """Waits until every process has reached this barrier."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(value: bool) -> bool:
    """The value that process 0 passes, in all processes."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def broadcast_text(text: str) -> str:
    """The text that process 0 passes, in all processes; at most `TEXT_BYTES` long."""
    if jax.process_count() == 1:
        return text
    padded = text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    return np.asarray(sent, np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """Process 0 finishes the body before the others start it, since it may have to make files."""
    if not is_primary():
        barrier(name)
    yield
    if is_primary():
        barrier(name)

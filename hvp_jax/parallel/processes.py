"""The processes of a run: which one this is, barriers, host collectives."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


def process_index_and_count() -> tuple[int, int]:
    """Which process this is, and of how many."""
    return jax.process_index(), jax.process_count()


def is_primary() -> bool:
    """Whether this is the process that writes and tells."""
    return jax.process_index() == 0


def all_gather_hosts(part: np.ndarray) -> np.ndarray:
    """The same host array of each process -> [processes, ...], on all of them."""
    return multihost_utils.process_allgather(part) if jax.process_count() > 1 else part[None]


def barrier(name: str) -> None:
    """Until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_primary(value: bool) -> bool:
    """A value of process 0, in all processes."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
    """Process 0 is through with the body before the others begin it: it may have to make files."""
    if not is_primary():
        barrier(name)
    yield
    if is_primary():
        barrier(name)

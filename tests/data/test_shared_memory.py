"""Shared memory that is too small for the batches of worker processes."""

import os
import signal
from types import SimpleNamespace

import pytest

from data.batches import shared_memory, worker_batches
from data.errors import UsageError

MIB = 1 << 20


def set_free(monkeypatch, free: int) -> None:
    status = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: status)


def test_batches_that_do_not_fit_are_refused_before_the_start(monkeypatch):
    set_free(monkeypatch, 64 * MIB)  # what Docker gives a container
    shared_memory.require_space(2, 7 * MIB)
    with pytest.raises(UsageError, match=r"workers=2 needs 72 MiB .* 64 MiB free.*--shm-size=1g"):
        shared_memory.require_space(2, 8 * MIB)
    with pytest.raises(UsageError, match=r"set data\.workers=1$"):
        shared_memory.require_space(2, 10 * MIB)
    with pytest.raises(UsageError, match=r"--shm-size=2g.* set data\.workers=0$"):
        shared_memory.require_space(4, 65 * MIB)


def test_a_machine_without_the_folder_is_not_refused(monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", "/nowhere/shm")
    shared_memory.require_space(2, 1 << 40)


def test_a_worker_that_dies_of_full_shared_memory_does_not_blame_a_decoder():
    message = worker_batches._death_message(-signal.SIGBUS)
    assert "shared memory is full" in message and "--shm-size" in message
    assert "decoder" not in message

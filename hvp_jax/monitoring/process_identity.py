"""Identifies a process beyond its number, which other hosts, containers and boots use as well."""

import contextlib
import datetime
import os
import socket
from pathlib import Path
from typing import Any


def identify() -> dict[str, Any]:
    """This process; `boot` and `namespace` are where its number is valid, "" if unknown."""
    boot = namespace = ""
    with contextlib.suppress(OSError):  # not Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # of a container
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": now(),
        "boot": boot,
        "namespace": namespace,
        "start_ticks": _state_and_start(pid)[1],
    }


def now() -> str:
    """The time in UTC; always of the same length."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def describe(process: dict[str, Any]) -> str:
    """What a person needs to find a process that `identify` returned; {}: unknown."""
    host, pid = process.get("host", "unknown"), process.get("pid", "unknown")
    return f"process {pid} on host {host}, started {process.get('started', 'at an unknown time')}"


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether a process that `identify` returned still runs; None if that cannot be seen here."""
    here = identify()
    place = [here[name] for name in ("host", "boot", "namespace")]
    if not all(place) or place != [process.get(name) for name in ("host", "boot", "namespace")]:
        return None
    pid = process.get("pid")
    if not isinstance(pid, int):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's process
    state, start = _state_and_start(pid)
    if not start:
        return None  # /proc may hide the processes of other users
    return start == process.get("start_ticks") and state not in "ZX"  # Z: ended, not waited for


def _state_and_start(pid: int) -> tuple[str, int]:
    """A process's state and start time in clock ticks since the boot; "" and 0 if unknown."""
    try:
        # The name, in parentheses, may contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", 0

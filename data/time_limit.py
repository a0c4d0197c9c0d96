"""A limit on the time of a process that does not depend on what else runs on the machine."""

import os
import time

IDLE = 20  # a process that is not running, but waiting for a disk, may take so many times longer


def processor_seconds(pid: int) -> float | None:
    """The processor time of a process, all threads together; None if it is unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


class TimeLimit:
    """`seconds` of the processor time of process `pid`, from now on."""

    def __init__(self, pid: int, seconds: float):
        self.seconds = seconds
        self._pid, self._begin = pid, time.monotonic()
        self._used_before = processor_seconds(pid) or 0.0

    def remaining(self) -> float:
        """Seconds; 0 if it is exceeded. The limit cannot be exceeded sooner."""
        elapsed = time.monotonic() - self._begin
        used = processor_seconds(self._pid)
        if used is None:
            return max(self.seconds - elapsed, 0.0)
        left = self.seconds - (used - self._used_before)
        return max(min(left, IDLE * self.seconds - elapsed), 0.0)

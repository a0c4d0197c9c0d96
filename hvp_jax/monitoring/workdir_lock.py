"""workdir/lock.json: only one run at a time trains in a workdir.

The file names the process that holds the workdir. It is created exclusively, and its holder
overwrites the heartbeat in it: `flock` does not reach other hosts on every shared file system.
The next run takes a lock over

- at once, if its process can be seen from here and has ended;
- otherwise, after `PATIENCE` seconds in which the waiting run has seen no new heartbeat. It
  compares no clocks. If it sees one, it is refused.

In a bucket the file is an object, which a heartbeat replaces as a whole.

A holder whose lock was taken over, because it was suspended or its file system hung, ends itself.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import sys
import threading
import time
from typing import Any

from data.errors import UserError
from data.storage import files as storage
from data.storage.path import Path, is_bucket
from hvp_jax.monitoring import process_identity
from hvp_jax.monitoring.json_files import make_workdir

LOCK_FILE = "lock.json"
HEARTBEAT_INTERVAL = 5.0  # seconds
# NFS clients may show a file as it was 60 s ago (acregmax); three heartbeats may be late as well.
PATIENCE = 60 + 3 * HEARTBEAT_INTERVAL
POLL_INTERVAL = 1.0  # seconds between two attempts
ADVICE = "wait until it ends, or use another workdir"

log = logging.getLogger(__name__)


class WorkdirLock:
    """The lock of a workdir: call `attempt` every `poll` seconds until it returns True.

    It is then held, or `refusal` says why not. `release` is to be called in any case.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        interval: float = HEARTBEAT_INTERVAL,
        patience: float = PATIENCE,
        poll: float = POLL_INTERVAL,
        advice: str = ADVICE,
    ):
        self.workdir, self.path = workdir, workdir / LOCK_FILE
        self.poll, self.refusal, self.held = poll, "", False
        self._interval, self._patience, self._advice = interval, patience, advice
        self._new_folders: list[Path] = []
        if not is_bucket(workdir):
            self._new_folders = [path for path in (workdir, *workdir.parents) if not path.exists()]
        self._own = process_identity.identify() | {"run": secrets.token_hex(16)}
        self._seen: bytes | None = None  # another run's lock
        self._unchanged = 0.0  # for so many seconds
        self._took_over = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="lock", daemon=True)

    def attempt(self) -> bool:
        """Tries to get the lock; True once that is decided."""
        try:
            self.held = self._attempt()
        except UserError as error:
            self.refusal = str(error)
        except OSError as error:
            self.refusal = f"cannot write {self.path}: {error.strerror}"
        if self.held:
            self._thread.start()
        return self.held or bool(self.refusal)

    def _attempt(self) -> bool:
        if self._took_over:
            # Another run may have done so in the same instant; the later one has it.
            self._took_over = False
            return self._is_own(_parse(self._read()))
        make_workdir(self.workdir)
        if self._create():
            return True
        found = self._read()
        if found is None:  # released just now
            self._seen = None
            return False
        holder = _parse(found)
        if self._is_own(holder):  # the answer of a bucket was lost, and the request repeated
            return True
        alive = process_identity.is_alive(holder)
        if alive is None and self._seen not in (None, found):
            alive = True
        if alive is None and self._seen is None:
            log.warning(
                "%s was in use by %s: waiting up to %g s for a sign that it is alive",
                *(self.workdir, process_identity.describe(holder), self._patience),
            )
        # Not the time that has passed: a file system that hangs stops the holder as well.
        self._unchanged = self._unchanged + self.poll if found == self._seen else 0.0
        self._seen = found
        if alive:
            self.refusal = (
                f"{self.workdir} is in use by another run: {process_identity.describe(holder)}; "
                f"{self._advice}"
            )
        elif alive is False or self._unchanged >= self._patience:
            if self._read() == found:
                storage.remove(self.path)
                self._took_over = self._create()
        return False

    def release(self) -> None:
        """Removes the lock if this run holds it, and new folders of a run that wrote nothing."""
        if self._own["pid"] != os.getpid():
            return  # a child process that inherited a signal handler
        if self.held:
            self.held = False
            self._done.set()
            self._thread.join(self._interval)
            with contextlib.suppress(OSError):
                if self._is_own(_parse(self._read())):
                    storage.remove(self.path)
        with contextlib.suppress(OSError):  # up to the first that is not empty
            while self._new_folders:
                storage.remove_empty_folder(self._new_folders.pop(0))

    def _content(self) -> bytes:
        """Always of the same length, so that a heartbeat overwrites all of the last one."""
        return (json.dumps(self._own | {"heartbeat": process_identity.now()}) + "\n").encode()

    def _create(self) -> bool:
        """Creates the file; False if it exists."""
        try:
            return storage.create(self.path, self._content())
        except FileNotFoundError:
            if is_bucket(self.path):  # there is no such bucket
                raise
            return False  # another run has removed the new workdir

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:  # on NFS, while it is being removed
                return None
            raise

    def _is_own(self, holder: dict[str, Any]) -> bool:
        return holder.get("run") == self._own["run"]

    def _renew_regularly(self) -> None:
        while not self._done.wait(self._interval):
            with contextlib.suppress(OSError):  # reported by what the run itself writes
                if other := self._renew():
                    self._end_process(other)

    def _renew(self) -> dict[str, Any] | None:
        """Writes a heartbeat, unless another run holds the lock: returns what its lock says."""
        if is_bucket(self.path):
            return self._renew_object()
        try:
            # Not a new file in its place, of which an NFS client may go on to show the old one.
            with open(self.path, "r+b", buffering=0) as file:
                holder = _parse(file.read())
                if self._is_own(holder):
                    file.seek(0)
                    file.write(self._content())
                    return None
                return holder or None  # {}: not written yet
        except FileNotFoundError:  # somebody has removed it
            self._create()
            return None

    def _renew_object(self) -> dict[str, Any] | None:
        """As `_renew`, in a bucket, where an object is replaced."""
        begin = time.monotonic()
        found = self._read()
        holder = _parse(found)
        if found is None:
            self._create()
        elif self._is_own(holder):
            # Else this process was suspended since, and the lock may have been taken over.
            if time.monotonic() - begin < self._patience / 2:
                storage.write_bytes(self.path, self._content())
        else:
            return holder or None
        return None

    def _end_process(self, holder: dict[str, Any]) -> None:
        print(
            f"error: {self.workdir} was taken over by another run, after no heartbeat of this "
            f"one for {self._patience:g} s: {process_identity.describe(holder)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # at once, since both runs would write the same files


def _parse(content: bytes | None) -> dict[str, Any]:
    """The fields of a lock file; {} if it is incomplete."""
    try:
        fields = json.loads(content or b"")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}

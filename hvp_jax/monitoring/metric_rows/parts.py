"""A stream that grows in a bucket: in parts, since nothing can be appended to an object."""

import logging
import threading

from data.storage import files as storage
from data.storage.path import Path

INTERVAL = 10.0  # seconds between two uploads
LIMIT = 256 * 2**10  # bytes, from which on a part is complete

log = logging.getLogger(__name__)


class Parts:
    """Objects in `folder`, whose order is that of their names. To be used in `with`.

    A part is written again, as a whole, every `INTERVAL` seconds while it grows to `LIMIT` bytes.
    A thread does that, so that no step waits for the bucket; what it cannot write stays in memory
    and is tried again. `flush` waits until all is written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._name, self._content = "", b""  # of the part that grows
        self._pending: dict[str, bytes] = {}  # name -> content that is not in the bucket yet
        self._lock, self._uploading = threading.Lock(), threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._upload_regularly, name="parts", daemon=True)

    def __enter__(self) -> "Parts":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def needs_name(self) -> bool:
        """Whether the next piece begins a new part."""
        return not self._name or len(self._content) >= LIMIT

    def begin(self, name: str) -> None:
        """Begins a part."""
        self._name, self._content = name, b""

    def append(self, piece: bytes) -> None:
        """Adds to the part that grows."""
        self._content += piece
        with self._lock:
            self._pending[self._name] = self._content

    def flush(self) -> None:
        """Writes what is not in the bucket yet. Raises OSError if that fails."""
        with self._uploading:
            while self._pending:
                with self._lock:
                    name, content = next(iter(self._pending.items()))
                storage.write_bytes(self._folder / name, content)
                with self._lock:
                    if self._pending[name] is content:  # it has not grown since
                        del self._pending[name]

    def _upload_regularly(self) -> None:
        reported: str | None = None
        while not self._done.wait(INTERVAL):
            try:
                self.flush()
                reported = None
            except OSError as error:
                if error.strerror != reported:
                    reported = error.strerror
                    log.warning("cannot write to %s, trying again: %s", self._folder, reported)

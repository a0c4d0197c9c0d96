"""Logs a run's metrics to its rows and TensorBoard, and its progress to stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from data.errors import UsageError, UserError
from data.storage.path import Path
from hvp_jax.monitoring.json_files import to_json_types
from hvp_jax.monitoring.metric_rows.files import open_rows
from hvp_jax.monitoring.tensorboard import TensorBoardWriter


class MetricsLogger:
    """Adds rows to those of `workdir` and prints progress to `stream`, by default stderr.

    Numbers also go to TensorBoard event files in `workdir`/tensorboard. A run that resumes from
    step k first drops the rows of later steps, which it will write again; from step 0, all rows.
    On a terminal, progress is a tqdm bar; elsewhere, a line at most every `seconds`. With `writes`
    false, for all processes but the first, it neither writes nor prints. To be used in `with`.

    In a bucket, rows and events are there some seconds later, or after `flush`.

    Raises UsageError if a file cannot be written, DataError if the rows are not JSON lines.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total: int,
        step: int = 0,
        *,
        stream: TextIO | None = None,
        seconds: float = 10.0,
        writes: bool = True,
    ):
        self._workdir, self._writes = Path(workdir), writes
        self._total, self._seconds = total, seconds
        self._stream = sys.stderr if stream is None else stream
        self._printed: tuple[float, int] | None = None  # time and step of the last progress line
        self._bar = None
        if not writes:
            return
        with _explain_os_error(self._workdir):
            self._rows = open_rows(self._workdir, step)
            self._events = TensorBoardWriter(
                self._workdir / "tensorboard", purge=step + 1 if step else 0
            )
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=step, file=self._stream, unit="step")

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writes:
            try:
                self.flush()
            except UserError:
                if error[0] is None:  # else that is reported
                    raise
            finally:
                for file in (self._rows, self._events):
                    # `write` or `flush` has already reported what could not be written.
                    with contextlib.suppress(OSError):
                        file.close()

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Adds a row, `step` first.

        Numbers keep their full precision; those that are not finite become null. Measurements,
        which differ from run to run, belong in a nested dict `measured`. Raises UsageError if
        writing fails.
        """
        if self._writes:
            with _explain_os_error(self._workdir):
                self._rows.write({"step": step} | to_json_types(row))
                self._events.write(step, row)

    def flush(self) -> None:
        """Returns when readers see all rows and events. Raises UsageError if writing fails."""
        if self._writes:
            with _explain_os_error(self._workdir):
                self._rows.flush()
                self._events.flush()

    def progress(self, step: int, loss: float) -> None:
        """Reports that `step` steps are done, if enough time has passed since the last report."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._printed is None:  # no rate yet: the time so far was mostly compilation
            self.print(f"step {step}/{self._total}  loss {loss:.4f}")
        elif now - self._printed[0] >= self._seconds or step >= self._total:
            speed = (step - self._printed[1]) / max(now - self._printed[0], 1e-9)  # steps/s
            left = _clock((self._total - step) / speed) if speed else "?"
            self.print(
                f"step {step}/{self._total}  loss {loss:.4f}  {speed:.2f} steps/s  {left} left"
            )
        else:
            return
        self._printed = (now, step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For code that is not training: its time does not count in the reported steps/s."""
        start = time.monotonic()
        yield
        if self._bar is not None:
            self._bar.unpause()
        elif self._printed is not None:
            self._printed = (self._printed[0] + time.monotonic() - start, self._printed[1])

    def print(self, text: str) -> None:
        """Prints a line of text to the stream, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._writes:
            print(text, file=self._stream, flush=True)


@contextlib.contextmanager
def _explain_os_error(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {workdir}: {error.strerror}; fix that and run the same command again "
            "to resume from the last checkpoint"
        ) from None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What a run writes down as it goes: metrics.jsonl and the like, progress on stderr."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from data.errors import DataError, UsageError
from hvp_jax.monitoring.json_files import to_json_types, write_text_atomically
from hvp_jax.monitoring.tensorboard import TensorBoardWriter


class MetricsLogger:
    """Appends rows to `workdir`/metrics.jsonl and shows progress on `stream`, stderr by default.

    Their numbers also go to TensorBoard event files in `workdir`/tensorboard. A run that
    goes on from step k drops the rows of later steps, which it writes again; one that
    starts at step 0 starts anew. On a terminal progress is a bar of tqdm, elsewhere a
    line at most every `seconds`. With `writes` false, for a process beside the one that
    writes, no file is touched and nothing is shown. To be used in `with`.

    Raises UsageError if a file cannot be written, DataError if metrics.jsonl does not hold JSON
    lines.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        total: int,
        step: int = 0,
        stream: TextIO | None = None,
        seconds: float = 10.0,
        writes: bool = True,
    ):
        self._workdir, self._writes = Path(workdir), writes
        self._total, self._seconds = total, seconds
        self._stream = sys.stderr if stream is None else stream
        self._told: tuple[float, int] | None = None  # when progress was last told, at which step
        self._bar = None
        if not writes:
            return
        path = self._workdir / "metrics.jsonl"
        rows = read_rows(path) if step and path.exists() else []
        write_text_atomically(path, "".join(_line(row) for row in rows if row["step"] <= step))
        with _writing(self._workdir):
            self._file = open(path, "a", encoding="utf-8")
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
            for file in (self._file, self._events):
                # What could not be written has been told by `write`, which leaves nothing behind.
                with contextlib.suppress(OSError):
                    file.close()

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One line of JSON, `step` first, handed to the system before this returns.

        Numbers keep their full precision; one that is not finite becomes null. What was
        measured, and so differs from run to run, belongs in one nested dict `measured`.
        Raises UsageError if it cannot be written.
        """
        if self._writes:
            with _writing(self._workdir):
                self._file.write(_line({"step": step} | to_json_types(row)))
                self._file.flush()
                self._events.write(step, row)

    def progress(self, step: int, loss: float) -> None:
        """Tells that `step` steps are done, if it is time to: call it as often as you like."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._told is None:  # the time until here went into compiling
            self.print(f"step {step}/{self._total}  loss {loss:.4f}")
        elif now - self._told[0] >= self._seconds or step >= self._total:
            rate = (step - self._told[1]) / max(now - self._told[0], 1e-9)  # steps a second
            left = _clock((self._total - step) / rate) if rate else "?"
            self.print(
                f"step {step}/{self._total}  loss {loss:.4f}  {rate:.2f} steps/s  {left} left"
            )
        else:
            return
        self._told = (now, step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no step: its time is left out of the rate that progress tells."""
        begin = time.monotonic()
        yield
        if self._bar is not None:
            self._bar.unpause()
        elif self._told is not None:
            self._told = (self._told[0] + time.monotonic() - begin, self._told[1])

    def print(self, text: str) -> None:
        """A line of text on the stream, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._writes:
            print(text, file=self._stream, flush=True)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut off is not one of them.

    Raises DataError if the file is missing or another line is not an object with a `step`.
    """
    try:
        lines = Path(path).read_text("utf-8", "replace").split("\n")[:-1]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: train first, it is written on the way") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0  # raises TypeError unless it is a number
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"{path} line {number} is not a JSON object with a step: mend or remove the file"
            ) from None
        found.append(row)
    return found


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {workdir}: {error.strerror}; once that is mended, the same command "
            "goes on from the last checkpoint"
        ) from None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

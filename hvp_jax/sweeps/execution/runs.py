"""One run of a sweep: its command, whether it has finished, and what its error was."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from typing import Any

from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path
from data.worker_process import ending
from hvp_jax.monitoring import process_identity
from hvp_jax.monitoring.json_files import write_text_atomically
from hvp_jax.monitoring.metric_rows.files import read_rows
from hvp_jax.monitoring.workdir_lock import LOCK_FILE
from hvp_jax.sweeps.manifest import ERROR_FILE

LOG_FILE = "log.txt"
SUPERVISE = Path(__file__).with_name("supervise.py")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: "SETTING/seed-N", its workdir, and the command that starts and resumes it."""

    name: str
    workdir: Path
    command: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.workdir / LOG_FILE

    def start(self) -> subprocess.Popen:
        """Starts or resumes the run; what it prints is appended to log.txt in its workdir.

        It saves and ends after `stop`, and when this process ends, whatever ends it.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.forgive()
        with open(self.log, "ab") as log:
            log.write(self._first_line().encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, SUPERVISE, *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C reaches the sweep alone
            )

    def finish(self, status: int) -> str:
        """Records how the run ended; "" if it finished, else the last line of its error."""
        if status == 0 and self.is_finished():
            return ""
        error = self._last_error(status)
        self.fail(error)
        return error

    def fail(self, error: str) -> None:
        """Records that the run failed."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.workdir / ERROR_FILE, error + "\n")

    def forgive(self) -> None:
        """Takes back what `fail` recorded."""
        (self.workdir / ERROR_FILE).unlink(missing_ok=True)

    def error(self) -> str:
        """What `fail` recorded; "" if the run has not failed."""
        path = self.workdir / ERROR_FILE
        return storage.read_text(path).strip() if path.exists() else ""

    def is_finished(self) -> bool:
        """Whether the run has done all of its steps and is evaluated.

        An eval.json alone does not show it: `eval` writes one for an unfinished run too.
        """
        steps = (read_object(self.workdir / "config.json").get("train") or {}).get("steps")
        return bool(read_object(self.workdir / "eval.json")) and steps == self._last_step()

    def holder(self) -> str:
        """The process that works in the workdir, as a text; "" if none is seen to be alive."""
        process = read_object(self.workdir / LOCK_FILE)
        alive = bool(process) and process_identity.is_alive(process)
        return process_identity.describe(process) if alive else ""

    def _first_line(self) -> str:
        """Of an attempt in the log: the command, for a shell."""
        return f"$ {shlex.join(self.command)}\n"

    def _last_step(self) -> int | None:
        try:
            return max((row["step"] for row in read_rows(self.workdir)), default=None)
        except DataError:
            return None

    def _last_error(self, status: int) -> str:
        """The last line of the last attempt's log that is an error, else its last line."""
        if status < 0:
            return f"ended by {ending(status)}"
        text = storage.read_text(self.log, "replace")
        lines = re.split(r"[\r\n]+", text.rpartition(self._first_line())[2].strip())
        lines = [line for line in lines if line]
        errors = [line for line in lines if re.match(r"error: |\w*Error: ", line)]
        return (errors or lines or [f"ended with {ending(status)}"])[-1].removeprefix("error: ")


def stop(process: subprocess.Popen) -> None:
    """Asks a started run to save and end; once more changes nothing."""
    assert process.stdin is not None, "Run.start opens it"
    process.stdin.close()


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    try:
        value = json.loads(storage.read_text(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

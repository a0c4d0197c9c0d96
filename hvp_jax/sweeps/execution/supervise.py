"""`python supervise.py COMMAND...`: COMMAND, which gets one SIGTERM when stdin is closed.

A sweep that ends, or is killed, closes it: its runs save and end, and the next sweep resumes them.
Not by prctl(PR_SET_PDEATHSIG), which sends a signal for each thread of the parent: the second one
would end a run before it has saved. Slurm sends a SIGTERM to this process too, and a warning before
the time limit (SIGUSR2) to the command, which submitit answers.

A file that is started by its path, so that it imports nothing of this package.
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> None:
    """Runs the command and ends as it does: with its exit status, or by the same signal."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # a handler is not inherited
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # this is
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_with_stdin, args=(process,), daemon=True).start()
    status = process.wait()
    if status < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(abs(status))


def _stop_with_stdin(process: subprocess.Popen) -> None:
    while os.read(0, 1):
        pass
    process.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])

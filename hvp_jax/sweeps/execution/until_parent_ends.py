"""`python until_parent_ends.py PID COMMAND...`: COMMAND, which gets a SIGTERM when PID ends.

A sweep that is killed leaves no runs behind: they save and end, and the next sweep resumes them.
A file of its own, started by its path, so that it imports nothing. It becomes COMMAND, and keeps
its process id.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # see prctl(2); Linux only

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # Slurm's warning before the time limit goes to every process of a job; submitit answers it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if os.getppid() != parent:  # it has ended already
        raise SystemExit(1)
    os.execv(command[0], command)

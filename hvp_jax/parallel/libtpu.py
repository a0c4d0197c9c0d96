"""TPU's library on a machine without a TPU, where `bench=tpu` uses its compiler."""

import glob
import os

# Where a chip would be, by the kernel's name of its device.
CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")
# Without these the library asks the cloud's metadata server what this machine is, complains on
# stderr that it gets no answer, writes logs to /tmp/tpu_logs, and refuses to be in two processes.
WITHOUT_CHIPS = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def quiet_without_chips() -> None:
    """Sets the library's environment if there is no TPU; takes effect before JAX has devices."""
    if not any(glob.glob(pattern) for pattern in CHIPS):
        for key, value in WITHOUT_CHIPS.items():
            os.environ.setdefault(key, value)

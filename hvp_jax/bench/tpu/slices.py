"""TPU slices to compile for, on a machine that has none."""

import importlib.util
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from data.errors import UsageError
from hvp_jax.monitoring.accelerators import PEAKS, TPUS, Peak, Tpu
from hvp_jax.parallel import libtpu
from hvp_jax.parallel.partitioner import slice_index

# The two cores of a chip are one device, as on the machines themselves. Other generations have one
# core a chip, or are like this without being told.
CHIP_CONFIG = {"v4": "megacore"}


class Slice(NamedTuple):
    """A slice, or several that train together."""

    name: str  # such as v5e:4x4, or 2xv5e:4x4 for two of it
    slices: int
    devices: list[jax.Device]  # one a chip
    peak: Peak
    chip: Tpu


def describe(name: str) -> Slice:
    """The slice of a topology such as v5e:4x4, or the slices of 2xv5e:4x4.

    Raises UsageError if TPU's compiler is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            "config.bench=tpu needs TPU's compiler, which needs no TPU: pip install "
            "-r requirements.txt -r requirements-tpu.txt"
        )
    libtpu.quiet_without_chips()
    times = re.match(r"(\d+)x", name)
    count, one = (int(times[1]), name[times.end() :]) if times else (1, name)
    generation = one.partition(":")[0]
    options: dict[str, Any] = {"num_slices": count} if count > 1 else {}
    if generation in CHIP_CONFIG:
        options["chip_config_name"] = CHIP_CONFIG[generation]
    try:
        topology = topologies.get_topology_desc(one, platform="tpu", **options)
    except (RuntimeError, NotImplementedError) as error:  # JaxRuntimeError is a RuntimeError
        reason = re.sub(r"^[A-Z_]+: ", "", str(error).strip().splitlines()[0])
        raise UsageError(f"config.topology: the compiler does not take {name}: {reason}") from None
    devices: list[Any] = list(topology.devices)
    return Slice(name, count, devices, PEAKS[devices[0].device_kind], TPUS[generation])


def is_here(target: Slice) -> bool:
    """Whether JAX runs on the slices themselves."""
    here = jax.devices()
    kind, count = here[0].device_kind, len({slice_index(device) for device in here})
    expected = len(target.devices), target.devices[0].device_kind, target.slices
    return (len(here), kind, count) == expected

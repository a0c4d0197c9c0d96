"""Compiles the training step for a slice, and finds the largest batch that fits."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hvp_jax.bench.lowering import lower_step
from hvp_jax.models.hvpnet import HVPNet

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compilation(NamedTuple):
    """A program that fits, or the compiler's message if it does not."""

    text: str  # of the compiled program; empty if it does not fit
    memory: float | None  # bytes on each chip, also where they are too many
    cpu_s: float  # CPU time of the compiler
    message: str = ""


def compile_step(
    config: ConfigDict, model: HVPNet, batch: int, devices: list[jax.Device]
) -> Compilation:
    """Compiles the step of a global batch; it takes minutes of CPU time for a model of full size.

    Raises the compiler's error unless it is about the memory of the chips.
    """
    lowered = lower_step(config, model, batch, devices)
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # the compiler's time is a result
    begin = time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        spent = time.process_time() - begin
        return Compilation("", used_memory(str(error)), spent, shorten(str(error)))
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    spent = time.process_time() - begin
    sizes: Any = compiled.memory_analysis()
    # The new state reuses the memory of the old one.
    memory = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    memory += sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    memory += sizes.generated_code_size_in_bytes
    return Compilation(compiled.as_text() or "", memory, spent)


def used_memory(message: str) -> float | None:
    """The bytes that the program would need, by the compiler's message about them."""
    match = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
    return float(match[1]) * UNITS[match[2]] if match else None


def shorten(message: str) -> str:
    """The sentences of the message about memory, without the list of allocations."""
    text = " ".join(message.partition("\n\n")[0].split())
    return text if len(text) <= 400 else text[:400] + " ..."


def largest_that_fits(fits: Callable[[int], bool], too_large: int, step: int) -> int:
    """The largest multiple of `step` below `too_large` that fits, by bisection; 0 if none does."""
    low, high = 0, too_large // step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step

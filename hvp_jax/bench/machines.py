"""Machines to plan for, and lower bounds for the time of a training step on them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hvp_jax.bench.memory import feature_shapes
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.monitoring.accelerators import PEAKS

SHARE = 0.4  # of the peak that a step is assumed to reach


class Machine(NamedTuple):
    kind: str  # key of `PEAKS`
    devices: int
    link: float  # published bandwidth: bytes per second that a device sends


# NVIDIA H100 data sheet: NVLink 900 GB/s, which counts both directions. For TPUs there is
# `bench=tpu`, which has their own compiler.
MACHINES = {
    "8 x H100": Machine("NVIDIA H100 80GB HBM3", 8, 450e9),
}


@functools.lru_cache
def bytes_to_exchange(model: HVPNet, words: int) -> tuple[int, int]:
    """Bytes of all parameters, and of the text features of one example."""
    params = jax.eval_shape(lambda: init_params(model, 0))
    text, _, _ = feature_shapes(model, 1, 1, words)
    params_bytes, text_bytes = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) for tree in (params, text)
    )
    return params_bytes, text_bytes


def bytes_sent(config: ConfigDict, model: HVPNet, batch: int, devices: int) -> float:
    """Bytes that a device sends in a step.

    Text features are gathered and their gradients reduce-scattered; the gradients of the
    parameters are all-reduced.
    """
    params, text = bytes_to_exchange(model, config.data.max_words)
    # In a ring, a gather or a reduce-scatter sends all shards but one; an all-reduce does both.
    return (devices - 1) / devices * (2 * batch * text + 2 * params)


def step_seconds(config: ConfigDict, model: HVPNet, machine: Machine, batch: int) -> dict[str, Any]:
    """Lower bounds for the time of a step: computation at SHARE of the peak, and communication."""
    peak = PEAKS[machine.kind]
    rate = peak.flops if model.dtype == jnp.bfloat16 else peak.flops_float32
    operations = flops.training_step(model, batch, config.data.max_frames, config.data.max_words)
    return {
        "compute_ms": 1000 * operations / machine.devices / (SHARE * rate),
        "links_ms": 1000 * bytes_sent(config, model, batch, machine.devices) / machine.link,
    }

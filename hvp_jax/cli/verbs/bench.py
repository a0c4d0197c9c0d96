"""The verb `bench`: measures speed and memory of training, scoring and input."""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from data.errors import UsageError
from data.storage.path import Path
from hvp_jax.bench.input import bench_input
from hvp_jax.bench.memory import bench_memory
from hvp_jax.bench.plan import bench_plan
from hvp_jax.bench.result import BenchResult
from hvp_jax.bench.similarity import bench_similarity
from hvp_jax.bench.step import bench_step
from hvp_jax.bench.tpu.compiled_step import bench_tpu
from hvp_jax.config.precision import enable_float64
from hvp_jax.config.resolve import check_platform, resolve
from hvp_jax.models.hvpnet import HVPNet, from_config
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.compile_cache import use_compile_cache
from hvp_jax.parallel.simulated import simulate_devices
from hvp_jax.weights import initial

PARTS: dict[str, Callable[[ConfigDict, HVPNet], BenchResult]] = {
    "step": bench_step,
    "similarity": bench_similarity,
    "input": bench_input,
    "memory": bench_memory,
    "plan": bench_plan,
    "tpu": bench_tpu,
}
# These parts only compile programs: the number of devices to simulate for them.
SIMULATED_DEVICES = {"memory": 8, "plan": 8}


def run(config: ConfigDict, workdir: Path | None = None) -> BenchResult:
    """Runs the part that `config.bench` names; writes bench_PART.json to a workdir if given."""
    if config.bench in ("plan", "tpu") and config.precision == "float64":
        raise UsageError(f"config.bench={config.bench} has no rates for config.precision=float64")
    if config.bench in SIMULATED_DEVICES:
        simulate_devices(SIMULATED_DEVICES[config.bench])
    enable_float64(config)
    # Only for the sizes: the computation is the same for any weights.
    initial_weights = initial.find_initial_weights(config)
    config = resolve(config, initial_weights.spec)
    if config.bench != "tpu":
        check_platform(config, jax.default_backend())
    model = from_config(config, initial_weights.spec.clip_config)
    if workdir is not None:
        json_files.make_workdir(workdir)
    use_compile_cache(config.compile_cache, workdir)
    result = PARTS[config.bench](config, model)
    if workdir is not None:
        written = json_files.to_json_types(result)
        if result.text is not None:
            written["text"] = result.text
        json_files.write_json(workdir / f"bench_{config.bench}.json", written)
    return result

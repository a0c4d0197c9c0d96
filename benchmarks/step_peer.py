"""Times a training step against the same step in PyTorch, in alternation, on one GPU.

    python benchmarks/step_peer.py [--variant=ViT-B/32] [--precision=bfloat16] [--batch=N]

Without --variant: ViT-B/32 and ViT-L/14. Without --precision: float32 and bfloat16 (parameters
and moments are float32 in both). Without --batch, each side's batch is doubled until it does
not fit into its half of the memory. Needs requirements-torch.txt, with a PyTorch for the device.

First it checks that both compute the same loss and gradient norm from the same weights and
batch, in full float32 and without noise. Then the sides alternate: each repeat runs a few
compiled and warm steps of each. It reports medians, in examples per second and as a share of
the published peak. Float32 products may use TF32 in both. PyTorch uses `torch.compile`,
autocast, scaled_dot_product_attention and fused AdamW.
"""

import argparse
import functools
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HALF = "0.45"  # of the device's memory for each side, so that both fit at once
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", HALF)  # before JAX is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks import torch_hvpnet
from configs.base import get_config
from data.batches.batch import TrainBatch
from hvp_jax.bench.step import random_batch
from hvp_jax.config.resolve import resolve
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params
from hvp_jax.monitoring.accelerators import PEAKS
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.optimization.optimizer import make_optimizer
from hvp_jax.training.train_step import train_step
from hvp_jax.weights import torch_params

REPEATS, STEPS = 5, 4  # steps in a repeat
MIN_BATCH, MAX_BATCH = 16, 4096  # of the search
LEARNING_RATE, CLIP_LEARNING_RATE, SCHEDULE = 1e-4, 1e-7, 1000
FROZEN = "clip.visual.conv1.weight"
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def config_of(variant: str, precision: str, batch: int, remat: str) -> ConfigDict:
    config = get_config()
    config.model.variant, config.precision, config.model.remat = variant, precision, remat
    config.model.freeze_patches = True  # as on a pretrained CLIP
    config.train.batch_size = batch
    return resolve(config)


def batch_of(config: ConfigDict, model: HVPNet) -> TrainBatch:
    """A batch of noise, the same for both sides."""
    return random_batch(config, model, np.random.default_rng(0))


def jax_step(
    config: ConfigDict, model: HVPNet, params: dict, noise: bool = True
) -> Callable[[], dict]:
    """A function that runs one training step and returns its metrics on the device."""
    optimizer = make_optimizer(LEARNING_RATE, CLIP_LEARNING_RATE, SCHEDULE)
    spec = step_spec.StepSpec(
        model=model,
        optimizer=optimizer,
        seed=config.seed,
        noise=noise,
        chunk_size=config.similarity.chunk_size,
    )
    partitioner = Partitioner("shard_map", devices=jax.devices()[:1])
    state = partitioner.shard_state(train_state.create_train_state(params, optimizer))
    step = partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
    batch = partitioner.shard_batch(batch_of(config, model))

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return run


def torch_step(
    config: ConfigDict, model: HVPNet, params: dict, noise: bool = True
) -> Callable[[], dict]:
    """The same in PyTorch."""
    weights = {
        name: torch.tensor(x, device=DEVICE, requires_grad=name != FROZEN)
        for name, x in torch_params.to_torch(params).items()
    }
    clip = [x for name, x in weights.items() if name.startswith("clip.") and name != FROZEN]
    head = [x for name, x in weights.items() if not name.startswith("clip.")]
    optimizer = torch.optim.AdamW(
        [{"params": clip, "lr": CLIP_LEARNING_RATE}, {"params": head, "lr": LEARNING_RATE}],
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=0.2,
        fused=True,
    )
    compute_loss = torch.compile(
        functools.partial(
            torch_hvpnet.loss,
            config=model.clip_config,
            taps=model.taps,
            stages=model.stages,
            noise=noise,
        ),
        dynamic=False,
    )
    host = batch_of(config, model)
    batch = {
        "video": torch.tensor(host.video, device=DEVICE),
        "text_ids": torch.tensor(host.text_ids, device=DEVICE, dtype=torch.int64),
    }
    dtype = TORCH_DTYPES[config.precision]

    def run():
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            loss = compute_loss(weights, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([*clip, *head], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "grad_norm": norm}

    return run


SIDES = {"JAX": jax_step, "PyTorch": torch_step}


def wait() -> None:
    """Blocks until the device has finished PyTorch's work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def check(variant: str, batch: int) -> None:
    """Exits unless both sides compute the same loss and gradient norm in float32."""
    config = config_of(variant, "float32", batch, "none")
    model = from_config(config)
    params = init_params(model, config.seed)
    torch.set_float32_matmul_precision("highest")
    with jax.default_matmul_precision("highest"):
        values = {
            name: {key: float(x) for key, x in make(config, model, params, noise=False)().items()}
            for name, make in SIDES.items()
        }
    torch.set_float32_matmul_precision("high")
    # The gradient norm is looser: one near tie resolved differently in the clustering shows in it.
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-2)):
        a, b = (values[name][key] for name in SIDES)
        print(f"{variant}: {key} of {batch} examples: JAX {a:.6f}, PyTorch {b:.6f}")
        if not abs(a - b) <= tolerance * abs(b):
            sys.exit(f"{variant}: {key} differs by more than {tolerance:g}: not the same step")


def build(side: str, variant: str, precision: str, remat: str, *, batch: int) -> Callable[[], dict]:
    """A step of one side, compiled and warm: it has run twice."""
    config = config_of(variant, precision, batch, remat)
    model = from_config(config)
    params = init_params(model, config.seed)
    run = SIDES[side](config, model, params)
    for _ in range(2):
        float(run()["loss"])
    return run


def fits(side: str, variant: str, precision: str, remat: str, *, batch: int) -> bool:
    """Whether a step fits into the memory, which is freed again."""
    try:
        build(side, variant, precision, remat, batch=batch)
        return True
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return False
    finally:
        torch._dynamo.reset()
        free_memory()


def largest_batch(side: str, variant: str, precision: str, remat: str) -> int:
    """The largest of MIN_BATCH, 2 MIN_BATCH, 4 MIN_BATCH ... that fits. Exits if none does."""
    batch = MIN_BATCH
    while batch <= MAX_BATCH and fits(side, variant, precision, remat, batch=batch):
        print(f"{variant} {precision} {side}: {batch} fit", file=sys.stderr, flush=True)
        batch *= 2
    if batch == MIN_BATCH:
        sys.exit(f"{variant} {precision} {side}: {MIN_BATCH} examples do not fit; pass --batch=N")
    return batch // 2


def free_memory() -> None:
    gc.collect()  # a traceback holds tensors in reference cycles
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def compare(variant: str, precision: str, remat: str, batch: int | None) -> None:
    """Times both sides in alternation and prints a line for each."""
    sizes = {side: batch or largest_batch(side, variant, precision, remat) for side in SIDES}
    runs = {
        side: build(side, variant, precision, remat, batch=size) for side, size in sizes.items()
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(REPEATS):
        for side, run in runs.items():
            begin = time.perf_counter()
            for _ in range(STEPS):
                metrics = run()
            float(metrics["loss"])
            wait()
            seconds[side].append((time.perf_counter() - begin) / STEPS)
    kind = jax.devices()[0].device_kind
    throughput = {}
    for side, size in sizes.items():
        config = config_of(variant, precision, size, remat)
        median = statistics.median(seconds[side])
        throughput[side] = size / median
        frames, words = config.data.max_frames, config.data.max_words
        operations = flops.training_step(from_config(config), size, frames, words)
        share = "no published peak"
        if kind in PEAKS:
            peak = PEAKS[kind].flops if precision == "bfloat16" else PEAKS[kind].flops_float32
            share = f"{operations / median / peak:.1%} of {peak / 1e12:.0f} TFLOP/s"
        print(
            f"{variant} {precision} {side:<8} batch {size:>5}  {1000 * median:9.1f} ms  "
            f"{throughput[side]:8.1f} examples/s  "
            f"{operations / median / 1e12:7.2f} TFLOP/s  {share}"
        )
    ratio = throughput["JAX"] / throughput["PyTorch"]
    print(f"{variant} {precision} JAX over PyTorch: {ratio:.2f}")


def main(scratch: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", action="append", help="ViT-B/32, ViT-L/14, tiny ...")
    parser.add_argument("--precision", action="append", choices=list(TORCH_DTYPES))
    parser.add_argument("--batch", type=int, help="of both sides; by default the largest that fits")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none", help="of JAX")
    args = parser.parse_args()
    if DEVICE.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(float(HALF))
    jax.config.update(
        "jax_compilation_cache_dir", scratch
    )  # the last step of the search is compiled again
    print(f"{jax.devices()[0].device_kind}, {REPEATS} repeats of {STEPS} steps, in alternation")
    for variant in args.variant or ["ViT-B/32", "ViT-L/14"]:
        check(variant, 4)
        for precision in args.precision or list(TORCH_DTYPES):
            compare(variant, precision, args.remat, args.batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

"""`bench --config.bench=input`: how fast files and shards are read, and what a step needs.

Times are CPU time over all threads: rates are those of one core, whatever else the machine
does. The ways of reading alternate, batch by batch, and medians are reported.
"""

import dataclasses
import itertools
import statistics
import time

from ml_collections import ConfigDict

from data import splits
from data.batches import frame_sources, pipeline
from data.batches.augment import open_augment
from data.inputs import read_clips
from hvp_jax.bench.result import BenchResult, describe_run
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet

REPEATS = 5
AUGMENT = "rand-m7-n4-mstd0.5-inc1"
# The bfloat16 peak of an H100, and the share of it that a training step is assumed to reach.
PEAK, SHARE = 989e12, 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadRate:
    clips_per_s: float = dataclasses.field(metadata={"json": "clips/s"})
    frames_per_s: float = dataclasses.field(metadata={"json": "frames/s"})
    cores_for_one_h100: float = dataclasses.field(metadata={"json": "cores_for_one_H100"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputResult(BenchResult):
    batch_size: int
    clips: int
    repeats: int
    ways: dict[str, ReadRate]
    step_needs_clips_per_s: float = dataclasses.field(metadata={"json": "step_needs_clips/s"})
    assumed: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputResultWithShards(InputResult):
    shards_over_files: float


def bench_input(config: ConfigDict, model: HVPNet) -> InputResult:
    """Clips and frames per second of one core, and the clips per second that a step needs."""
    data, batch_size = config.data, config.train.batch_size
    clips = splits.clips_of_split(read_clips(config), "train")
    size = model.clip_config.image_size
    sources: dict[str, frame_sources.FrameSource] = {
        "files": frame_sources.FileFrames(clips, size, data.max_frames)
    }
    if data.shards:
        sources["shards"] = frame_sources.ShardFrames(data.shards, clips, size, data.max_frames)
    augments = {"": None, " augmented": open_augment(config.seed, AUGMENT, 1.0, False)}
    ways = {
        name + suffix: pipeline.numbered_batches(
            clips,
            source,
            data.max_frames,
            data.max_words,
            batch_size=batch_size,
            seed=config.seed,
            augment=augment,
        )
        for (name, source), (suffix, augment) in itertools.product(
            sources.items(), augments.items()
        )
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    frames: dict[str, list[int]] = {name: [] for name in ways}
    for i in range(REPEATS + 1):
        for name, batches in ways.items():
            begin = time.process_time()
            batch = batches[i]
            if i:  # the first one is the warm-up
                seconds[name].append(time.process_time() - begin)
                frames[name].append(int(batch.video_mask.sum()))
    operations = flops.training_step(model, 1, data.max_frames, data.max_words)
    needed = PEAK * SHARE / operations
    rates = {}
    for name, times in seconds.items():
        rate = batch_size / statistics.median(times)
        rates[name] = ReadRate(
            clips_per_s=rate,
            frames_per_s=statistics.median(n / t for n, t in zip(frames[name], times, strict=True)),
            cores_for_one_h100=needed / rate,
        )
    result = InputResult(
        **describe_run(config),
        batch_size=batch_size,
        clips=len(clips),
        repeats=REPEATS,
        ways=rates,
        step_needs_clips_per_s=needed,
        assumed=f"{SHARE:.0%} of {PEAK / 1e12} TFLOP/s",
    )
    if not data.shards:
        return result
    ratio = rates["shards"].clips_per_s / rates["files"].clips_per_s
    return InputResultWithShards(**vars(result), shards_over_files=ratio)

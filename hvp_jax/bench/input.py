"""`bench --config.bench=input`: how fast clips come from files and shards, and are eaten.

Time is that of the processor, over all threads: rates are those of one core, whatever
else the machine does. Ways take turns, batch by batch, and medians are reported.
"""

import itertools
import statistics
import time

from ml_collections import ConfigDict

from data import splits
from data.batches import frame_sources, pipeline
from data.batches.augment import open_augment
from data.inputs import read_clips
from hvp_jax.models import flops
from hvp_jax.models.hvpnet import HVPNet

REPEATS = 5
AUGMENT = "rand-m7-n4-mstd0.5-inc1"
PEAK, SHARE = 989e12, 0.4  # of an H100 in bfloat16, and what a step makes of it


def bench_input(config: ConfigDict, model: HVPNet) -> dict:
    """Clips and frames a second of one core, beside the clips a second that a step needs."""
    data, batch = config.data, config.train.batch_size
    clips = splits.clips_of_split(read_clips(config), "train")
    place = clips, model.clip_config.image_size, data.max_frames
    sources = {"files": frame_sources.FileFrames(*place)}
    if data.shards:
        sources["shards"] = frame_sources.ShardFrames(data.shards, *place)
    augments = {"": None, " augmented": open_augment(config.seed, AUGMENT, 1.0, False)}
    ways = {
        name + suffix: pipeline.numbered_batches(
            clips, source, data.max_frames, data.max_words, batch, config.seed, augment=augment
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
            made = batches[i]
            if i:  # the first warms up
                seconds[name].append(time.process_time() - begin)
                frames[name].append(int(made.video_mask.sum()))
    operations = flops.training_step(model, 1, data.max_frames, data.max_words)
    need = PEAK * SHARE / operations
    result = {"batch_size": batch, "clips": len(clips), "repeats": REPEATS, "ways": {}}
    for name, times in seconds.items():
        rate = batch / statistics.median(times)
        result["ways"][name] = {
            "clips/s": rate,
            "frames/s": statistics.median(n / t for n, t in zip(frames[name], times, strict=True)),
            "cores_for_one_H100": need / rate,
        }
    if data.shards:
        rates = {name: way["clips/s"] for name, way in result["ways"].items()}
        result["shards_over_files"] = rates["shards"] / rates["files"]
    return result | {"step_needs_clips/s": need, "assumed": f"{SHARE:.0%} of {PEAK / 1e12} TFLOP/s"}

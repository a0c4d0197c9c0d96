"""How many threads hide a bucket's latency: the share of a run that waits for its input.

    python benchmarks/bucket_latency.py [--latency=0.03] [--step=0.5] [--threads=1,2,4,8,16,32,64]

Clips are read from shards in a bucket that `object_server.py` serves, a process of its own that
answers every request so many seconds later; a step is a sleep. Clips are small: what is measured
is waiting, not the bandwidth of a network. `cores` is the processor time of the reader, per second
of its work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data.batches import frame_sources, pipeline
from data.records import Clip
from data.shards import builder, prepare
from tests.helpers.clips import write_video

SIZE, FRAMES, WORDS = 16, 12, 24
CLIPS, CLIPS_OF_SHARD, BATCH = 256, 16, 64
SECONDS = 10.0  # of a measurement
SHARDS = "gs://bucket/shards"


def make_shards(folder: Path) -> list[Clip]:
    """Many clips of one noisy video, so that they do not compress."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    path = write_video(folder / "video.mp4", frames, rate=1)
    clips = [Clip(f"clip{i}", str(path), (f"text {i}",), "train") for i in range(CLIPS)]
    builder.SHARD_BYTES = CLIPS_OF_SHARD * FRAMES * SIZE * SIZE * 3
    prepare.prepare(clips, str(folder / "shards"), SIZE, FRAMES)
    return clips


def measure(clips: list[Clip], threads: int, step: float) -> tuple[float, float, float]:
    """Clips per second, the share of the time that is waited for batches, and `cores`."""
    frame_sources.num_threads = lambda source=None: threads
    source = frame_sources.open_frames(clips, SIZE, FRAMES, SHARDS)
    numbered = pipeline.numbered_batches(clips, source, FRAMES, WORDS, batch_size=BATCH, seed=0)
    batches = pipeline.train_batches(numbered)
    for _ in range(CLIPS // BATCH):  # opens the files
        next(batches)
    begin, cpu, waited, steps = time.monotonic(), time.process_time(), 0.0, 0
    while (seconds := time.monotonic() - begin) < SECONDS:
        before = time.monotonic()
        next(batches)
        waited += time.monotonic() - before
        time.sleep(step)
        steps += 1
    cpu = time.process_time() - cpu
    batches.close()
    return steps * BATCH / seconds, waited / seconds, cpu / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.03, help="seconds of each request")
    parser.add_argument("--step", type=float, default=0.5, help="seconds of a step")
    parser.add_argument("--threads", default="1,2,4,8,16,32,64")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = make_shards(Path(folder))
        command = [sys.executable, str(ROOT / "benchmarks/object_server.py"), folder]
        command.append(f"--latency={flags.latency}")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as server:
            os.environ.update(json.loads(server.stdout.readline()))
            steps = f"clips/s, steps of {flags.step} s"
            print(f"| threads | clips/s, no step | cores | {steps} | waited |")
            print("| ---: | ---: | ---: | ---: | ---: |")
            for threads in map(int, flags.threads.split(",")):
                free, _, cores = measure(clips, threads, 0.0)
                rate, share, _ = measure(clips, threads, flags.step)
                row = f"| {threads} | {free:.0f} | {cores:.2f} | {rate:.0f} | {share:.0%} |"
                print(row, flush=True)
            server.kill()
    sys.stdout.flush()
    os._exit(0)  # threads that read ahead would wait for the server that is gone


if __name__ == "__main__":
    main()

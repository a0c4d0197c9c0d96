"""How many threads hide a bucket's latency: the share of a run that waits for its input.

    python benchmarks/bucket_latency.py [--latency=0.03] [--step=0.5] [--threads=1,2,4,8,16,32,64]

Clips are read from shards in an emulated bucket, a process of its own that answers every request
so many seconds later; a step is a sleep. Clips are small, since the emulator is slow: what is
measured is waiting, not the bandwidth of a network.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from data.batches import frame_sources, pipeline
from data.records import Clip
from data.shards import builder, prepare
from tests.helpers.bucket import emulated_bucket, latency
from tests.helpers.clips import write_video

SIZE, FRAMES, WORDS = 16, 12, 24
CLIPS, CLIPS_OF_SHARD, BATCH, STEPS = 256, 16, 64, 16
SHARDS = "gs://bucket/shards"


def serve(seconds: float) -> None:
    """Prints where the bucket is, and answers until stdin is closed."""
    logging.disable()  # of objects that are not there
    with emulated_bucket() as bucket:
        bucket.fault = latency(seconds)
        print(json.dumps(bucket.environment), flush=True)
        sys.stdin.read()


def make_shards(folder: Path) -> list[Clip]:
    """Many clips of one noisy video, so that they do not compress."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    path = write_video(folder / "video.mp4", frames, rate=1)
    clips = [Clip(f"clip{i}", str(path), (f"text {i}",), "train") for i in range(CLIPS)]
    builder.SHARD_BYTES = CLIPS_OF_SHARD * FRAMES * SIZE * SIZE * 3
    prepare.prepare(clips, SHARDS, SIZE, FRAMES)
    return clips


def measure(clips: list[Clip], threads: int, step: float) -> tuple[float, float]:
    """Clips per second, and the share of the time that is waited for batches."""
    frame_sources.num_threads = lambda source=None: threads
    source = frame_sources.open_frames(clips, SIZE, FRAMES, SHARDS)
    numbered = pipeline.numbered_batches(clips, source, FRAMES, WORDS, batch_size=BATCH, seed=0)
    batches = pipeline.train_batches(numbered)
    for _ in range(CLIPS // BATCH):  # opens the files
        next(batches)
    begin, waited = time.monotonic(), 0.0
    for _ in range(STEPS):
        before = time.monotonic()
        next(batches)
        waited += time.monotonic() - before
        time.sleep(step)
    seconds = time.monotonic() - begin
    batches.close()
    return STEPS * BATCH / seconds, waited / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.03, help="seconds of each request")
    parser.add_argument("--step", type=float, default=0.5, help="seconds of a step")
    parser.add_argument("--threads", default="1,2,4,8,16,32,64")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        return serve(flags.latency)
    command = [sys.executable, __file__, "--serve", f"--latency={flags.latency}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        os.environ.update(json.loads(server.stdout.readline()))
        with tempfile.TemporaryDirectory() as folder:
            clips = make_shards(Path(folder))
        print(f"| threads | clips/s, no step | clips/s, steps of {flags.step} s | waited |")
        print("| ---: | ---: | ---: | ---: |")
        for threads in map(int, flags.threads.split(",")):
            free, _ = measure(clips, threads, 0.0)
            rate, share = measure(clips, threads, flags.step)
            print(f"| {threads} | {free:.0f} | {rate:.0f} | {share:.0%} |", flush=True)
        server.kill()
        server.wait()
    sys.stdout.flush()
    os._exit(0)  # threads that read ahead would wait for the server that is gone


if __name__ == "__main__":
    main()

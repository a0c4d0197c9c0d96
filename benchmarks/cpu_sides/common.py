"""What both sides of `benchmarks/cpu_peer.py` share: the sizes, and how a side is told what to do.

A side is a process. It reads a command a line from its standard input and answers each with a
line of JSON: `build ROW` makes a row's inputs and runs it once, `time` measures the product and
the row, `drop` frees the row. Between commands it waits, with everything in memory.
"""

import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

Run = Callable[[], float]  # does a row's work once; returns a number that both sides must agree on


class Sizes(NamedTuple):
    variant: str
    batch: int  # examples of a training step; clips encoded at a time
    texts: int  # encoded at a time
    frames: int
    words: int
    gallery: int  # texts, and clips, of the similarity and the evaluation
    split: int  # texts, and clips, that the original scores at a time
    product: int  # side of the matrices whose product is the measure of the machine


SIZES = {
    "base": Sizes("ViT-B/32", 8, 32, 12, 24, 200, 32, 4096),
    "tiny": Sizes("tiny", 2, 3, 2, 8, 5, 2, 128),  # to see that the script runs
}


def batch_of(sizes: Sizes, image_size: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, the same for both sides: text ids [B, W] and uint8 frames [B, T, H, W, 3]."""
    rng = np.random.default_rng(0)
    count = max(sizes.batch, sizes.texts)
    ids = rng.integers(1, vocab_size, (count, sizes.words), np.int32)
    shape = (sizes.batch, sizes.frames, image_size, image_size, 3)
    return ids, rng.integers(0, 256, shape, np.uint8)


def gallery_of(sizes: Sizes, embed_dim: int, taps: int, tokens: int) -> dict[str, np.ndarray]:
    """Features of noise as the encoders return them, before they are normalised."""
    rng = np.random.default_rng(1)
    shapes = {
        "words": (sizes.gallery, sizes.words),
        "sentence": (sizes.gallery,),
        "patches": (taps, sizes.gallery, tokens),
        "frames": (taps, sizes.gallery, sizes.frames),
    }
    return {k: rng.standard_normal((*v, embed_dim), np.float32) for k, v in shapes.items()}


def tokens_of(sizes: Sizes, embed_dim: int, tokens: int, taps: int) -> np.ndarray:
    """Tokens to distil [taps * B, N, D]."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((taps * sizes.batch, tokens, embed_dim), np.float32)


def serve(open_rows: Callable[[Path, Sizes], Mapping[str, Callable[[], Run]]], product: Callable):
    """Answers commands until the input ends; `product(side)` returns a function that multiplies."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not an answer
    sizes = SIZES[sys.argv[2]]
    rows = open_rows(Path(sys.argv[1]), sizes)
    multiply, run = product(sizes.product), None
    multiply()
    for line in sys.stdin:
        command, _, row = line.strip().partition(" ")
        answer: dict = {}
        if command == "build":
            run = rows[row]()
            answer["value"] = run()
            run()
        elif command == "time":
            assert run is not None, "time comes after build"
            # One product is so short that a single interruption would distort it.
            answer["product_s"] = statistics.median(_seconds(multiply) for _ in range(3))
            answer["s"] = _seconds(run)
        elif command == "drop":
            run = None
            gc.collect()
            kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer["peak_gib"] = kib / 2**20
        print(json.dumps(answer), file=answers, flush=True)


def _seconds(work: Callable) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin

"""The inputs of a new golden run: a small random model, clips from video files, and batches.

`hvp_jax/parity/runs/golden_run.py` describes the arrays. The clips are the built-in ones, and
the sizes are the flags of `record_run.py`.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from data import inputs, splits, tokenizer
from data.batches.frame_sources import FileFrames
from data.errors import DataError, UsageError
from data.records import Clip, DatasetLocation
from data.synthetic import shapes
from hvp_jax.config.head import STAGES
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.distillation.clustering import NEIGHBOURS
from hvp_jax.models.distillation.stage import HEADS
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.models.layers import PIXEL_MEAN, PIXEL_STD
from hvp_jax.parity.runs.checks import FROZEN
from hvp_jax.parity.runs.golden_run import GoldenRun
from hvp_jax.training.optimization.optimizer import MAX_LOG_SCALE
from hvp_jax.weights import torch_params

VOCABULARY, CONTEXT = 128, 32  # ids; positions of the text tower, at least
HEAD_DIM = ClipConfig.vision_head_dim  # no shape determines it, so every file has this one
SHORT_EVERY = 4  # one clip in so many has a padded frame
SPARE = 1.25  # clips rendered for each one that is needed
OPTIMIZER = {"coef_lr": 0.1, "weight_decay": 0.2, "warmup": 0.1, "b1": 0.9, "b2": 0.98}
OPTIMIZER |= {"eps": 1e-6, "max_grad_norm": 1.0}
RULES = {
    "frame_rule": f"one clip in {SHORT_EVERY} has a padded frame; no two frames of it are equal",
    "vocabulary_rule": (
        f"start of text -> {VOCABULARY - 2}, end of text -> {VOCABULARY - 1}, any other id t of "
        f"CLIP's vocabulary -> 1 + t mod {VOCABULARY - 3}; padding is 0"
    ),
    "batch_rule": (
        "numpy.random.default_rng(seed): each step one permutation of the training captions, read "
        "from the front, captions of a clip already in the batch passed over"
    ),
}


def make_run(args: argparse.Namespace) -> GoldenRun:
    """The run that the flags describe, without results. Raises UsageError or DataError."""
    config = _clip_config(args)
    layers = args.layers
    taps = tuple(sorted({1, max(1, layers // 2), layers}))  # as the command `train` has them
    if args.root:
        train, test = _decoded_clips(args, str(args.root))
    else:
        with tempfile.TemporaryDirectory() as folder:
            root = os.path.join(folder, "clips")
            count, tests = (int(SPARE * n) + 1 for n in (args.train_clips, args.test_clips))
            shapes.make_dataset(root, args.seed, train=count, val=0, test=tests)
            train, test = _decoded_clips(args, root)
    model = HVPNet(config, taps, stages=STAGES)
    params = init_params(model, args.seed)
    state = torch_params.to_torch(params)
    arrays = {f"state/{name}": np.asarray(x, np.float32) for name, x in state.items()}
    arrays |= _video_arrays([*train, *test], args.frames)
    arrays |= _text_arrays([clip for clip, _ in (*train, *test)], args.words)
    count = sum(len(clip.captions) for clip, _ in train)  # of the training captions
    arrays["batches"] = draw_batches(
        arrays["data/clip_of_caption"][:count], args.steps, args.batch_size, args.seed
    )
    clips, captions = len(train) + len(test), len(arrays["data/text_ids"])
    metadata: dict[str, Any] = {
        "seed": args.seed,
        "dims": dataclasses.asdict(config),
        "layers_zero_based": [tap - 1 for tap in taps],
        "optimizer": OPTIMIZER
        | {"lr": args.learning_rate, "t_total": args.steps, "steps": args.steps},
        "frozen": FROZEN,
        "noise": 0.0,
        "logit_scale_at_most": MAX_LOG_SCALE,
        "normalisation": {"mean": PIXEL_MEAN, "std": PIXEL_STD},
        "train": {"clips": [0, len(train)], "captions": [0, count]},
        "test": {"clips": [len(train), clips], "captions": [count, captions]},
        **RULES,
    }
    return GoldenRun(
        path=args.output, arrays=arrays, metadata=metadata, clip_config=config, stages=STAGES
    )


def _clip_config(args: argparse.Namespace) -> ClipConfig:
    """Raises UsageError if the sizes fit no model."""
    for name, value, divisor in (
        ("width", args.width, HEAD_DIM),
        ("embed_dim", args.embed_dim, HEADS),
        ("image_size", args.image_size, args.patch_size),
    ):
        if value % divisor:
            raise UsageError(f"--{name} is {value}; it must be a multiple of {divisor}")
    if args.words < 3:
        raise UsageError(f"--words is {args.words}; start, one token and end need 3")
    if args.batch_size > args.train_clips:
        raise UsageError(
            f"--batch_size is {args.batch_size}, of {args.train_clips} --train_clips: a clip is in "
            "a batch only once"
        )
    tokens = args.frames * ((args.image_size // args.patch_size) ** 2 + 1)
    for _ in range(STAGES - 1):
        tokens = (tokens + 1) // 2
    if tokens < NEIGHBOURS:
        raise UsageError(
            f"the last stage would cluster {tokens} tokens, which needs {NEIGHBOURS}: use more "
            "--frames or a smaller --patch_size"
        )
    return ClipConfig(
        image_size=args.image_size,
        patch_size=args.patch_size,
        vision_width=args.width,
        vision_layers=args.layers,
        text_width=args.width,
        text_layers=max(1, args.layers // 2),
        embed_dim=args.embed_dim,
        context_length=max(CONTEXT, args.words),
        vocab_size=VOCABULARY,
    )


Decoded = list[tuple[Clip, np.ndarray]]


def _decoded_clips(args: argparse.Namespace, root: str) -> tuple[Decoded, Decoded]:
    """The clips of the training and of the test split, with their frames."""
    location = DatasetLocation("shapes", root=root)
    clips = inputs.read_dataset(location, splits=("train", "test"))
    train = decode(splits.clips_of_split(clips, "train"), args, args.train_clips, root)
    return train, decode(splits.clips_of_split(clips, "test"), args, args.test_clips, root)


def decode(clips: Sequence[Clip], args: argparse.Namespace, count: int, root: str) -> Decoded:
    """The first `count` clips of a split whose frames differ and that lack at most one frame."""
    lengths = (args.frames, max(1, args.frames - 1))
    full, short = (FileFrames(clips, args.image_size, length) for length in lengths)
    decoded: Decoded = []
    split, dropped = clips[0].split, 0
    with tqdm(total=count, desc=f"decoding {split}", unit="clip", leave=False) as progress:
        for clip in clips:
            source = short if len(decoded) % SHORT_EVERY == SHORT_EVERY - 1 else full
            frames = source[clip.clip_id]  # [T, H, W, 3]
            # Equal frames give equal tokens, whose order in the clustering is arbitrary.
            differ = len({frame.tobytes() for frame in frames}) == len(frames)
            if not differ or len(frames) < lengths[1]:
                dropped += 1
                continue
            decoded.append((clip, frames))
            progress.update()
            if len(decoded) == count:
                break
    if dropped:
        print(f"clips of {split} left out, because frames are equal or too few: {dropped}")
    if len(decoded) < count:
        raise DataError(
            f"{root}: {len(decoded)} clips of {split} can be used, {count} are needed: lower "
            f"--{split}_clips or --frames"
        )
    return decoded


def _video_arrays(decoded: Decoded, length: int) -> dict[str, np.ndarray]:
    video = np.zeros((len(decoded), length, *decoded[0][1].shape[1:]), np.uint8)
    for padded, (_, frames) in zip(video, decoded, strict=True):
        padded[: len(frames)] = frames
    counts = np.array([len(frames) for _, frames in decoded], np.int32)
    return {"data/video": video, "data/video_frames": counts}


def _text_arrays(clips: Sequence[Clip], words: int) -> dict[str, np.ndarray]:
    ids, mask = tokenizer.tokenize([text for clip in clips for text in clip.captions], words)
    folded = 1 + ids % (VOCABULARY - 3)
    folded[ids == tokenizer.START], folded[ids == tokenizer.END] = VOCABULARY - 2, VOCABULARY - 1
    captions = [len(clip.captions) for clip in clips]
    return {
        "data/text_ids": np.where(mask, folded, 0).astype(np.int32),
        "data/text_mask": mask.astype(np.int32),
        "data/clip_of_caption": np.repeat(np.arange(len(clips), dtype=np.int32), captions),
    }


def draw_batches(clip_of_caption: np.ndarray, steps: int, size: int, seed: int) -> np.ndarray:
    """The captions of each step [steps, size], never two of one clip."""
    rng = np.random.default_rng(seed)
    batches = np.empty((steps, size), np.int32)
    for batch in batches:
        order = rng.permutation(len(clip_of_caption))
        _, first = np.unique(clip_of_caption[order], return_index=True)  # of each clip
        batch[:] = order[np.sort(first)[:size]]
    return batches

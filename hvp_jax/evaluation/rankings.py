"""ranks.npz: the rank of every query of an evaluation, and which data it is of."""

import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from data import records
from data.errors import DataError
from data.storage import files as storage
from data.storage.path import Path, PathLike
from hvp_jax.evaluation import metrics
from hvp_jax.monitoring import json_files

RANKS_FILE = "ranks.npz"


class Rankings(NamedTuple):
    """The ranks of both directions, from 1, as `metrics.ranks` counts them: ties share their mean.

    Caption i of a clip has the id CLIP#i. `data` is the fingerprint of the clips and captions: the
    ranks of two evaluations may be compared query by query if it is the same.
    """

    text_to_video: Float[np.ndarray, " captions"]
    video_to_text: Float[np.ndarray, " clips"]
    caption_ids: list[str]
    clip_ids: list[str]
    clip_of_caption: Int[np.ndarray, " captions"]
    split: str
    data: str


def rank(clips: Sequence[records.Clip], matrix: Float[np.ndarray, "captions clips"]) -> Rankings:
    """The ranks of all captions and clips of one split.

    `matrix` has a row for each caption, in the order of the clips. Raises DataError as
    `metrics.ranks` does.
    """
    clip_of_caption = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    best = metrics.best_captions(matrix, clip_of_caption)
    return Rankings(
        text_to_video=metrics.ranks(matrix, clip_of_caption),
        video_to_text=metrics.ranks(best, np.arange(len(clips))),
        caption_ids=[f"{clip.clip_id}#{i}" for clip in clips for i in range(len(clip.captions))],
        clip_ids=[clip.clip_id for clip in clips],
        clip_of_caption=clip_of_caption,
        split=clips[0].split,
        data=records.fingerprint(clips),
    )


def write(folder: PathLike, rankings: Rankings) -> None:
    """Writes ranks.npz, atomically. Raises UsageError if it cannot be written."""
    with json_files.open_atomically(Path(folder) / RANKS_FILE, "wb") as file:
        np.savez_compressed(file, **rankings._asdict())


def read(folder: PathLike) -> Rankings:
    """The ranks that `write` wrote to `folder`. Raises DataError if they are absent or damaged."""
    path = Path(folder) / RANKS_FILE
    try:
        with (
            storage.open_read(path) as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            fields = {name: arrays[name] for name in Rankings._fields}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: run `eval` with this workdir") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged, run `eval` again: {error}") from None
    texts = {name: fields[name].tolist() for name in ("caption_ids", "clip_ids", "split", "data")}
    return Rankings(**{**fields, **texts})

"""Batches of evaluation: every caption and every clip once, in order."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from data.batches.batch import TextBatch, VideoBatch
from data.batches.frame_sources import FrameSource
from data.batches.pipeline import READ_AHEAD, ReadVideos
from data.records import Clip
from data.tokenizer import tokenize


def eval_texts(
    clips: Sequence[Clip], max_words: int, batch_size: int
) -> Iterator[tuple[TextBatch, int]]:
    """Every caption once, clip by clip, in batches with the number of their valid rows.

    The rows after these, in the last batch, are padding: their mask is all False.
    """
    captions = [caption for clip in clips for caption in clip.captions]
    for first in range(0, len(captions), batch_size):
        ids, mask = tokenize(captions[first : first + batch_size], max_words)
        valid = len(ids)
        padding = ((0, batch_size - valid), (0, 0))
        yield TextBatch(np.pad(ids, padding), np.pad(mask, padding)), valid


def eval_videos(
    clips: Sequence[Clip], source: FrameSource, num_frames: int, batch_size: int
) -> Iterator[tuple[VideoBatch, int]]:
    """Every clip once, in order, in batches with the number of their valid rows.

    The last batch is padded as in `eval_texts`. Raises DataError if a clip cannot be read.
    """
    clip_ids = [clip.clip_id for clip in clips]
    read = ReadVideos(
        source=source, clip_ids=clip_ids, num_frames=num_frames, batch_size=batch_size
    )
    dataset = grain.MapDataset.range(len(clips)).batch(batch_size).map(read)
    for i, batch in enumerate(dataset.to_iter_dataset(READ_AHEAD)):
        yield batch, min(batch_size, len(clips) - i * batch_size)

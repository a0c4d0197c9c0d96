"""The examples of an epoch of training: pairs of a clip and a caption."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from data.errors import DataError
from data.records import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """The examples of every epoch.

    With the sampling "pairs" they are all pairs; with "videos" they are the clips that have
    captions, each with one of them that depends on the seed, the epoch and the clip alone.
    """

    clips: Sequence[Clip]
    clip_of_example: Int[np.ndarray, " examples"]  # index into `clips`
    caption_of_example: Int[np.ndarray, " examples"] | None  # of its clip; None: a random one
    seed: int

    @classmethod
    def of_clips(cls, clips: Sequence[Clip], sampling: str, seed: int) -> "Pairs":
        counts = np.array([len(clip.captions) for clip in clips], int)
        if sampling == "videos":
            return cls(
                clips=clips,
                clip_of_example=np.flatnonzero(counts),
                caption_of_example=None,
                seed=seed,
            )
        first = np.cumsum(counts) - counts
        clip_of_pair = np.repeat(np.arange(len(clips)), counts)
        caption = np.arange(len(clip_of_pair)) - first[clip_of_pair]
        return cls(clips=clips, clip_of_example=clip_of_pair, caption_of_example=caption, seed=seed)

    def __len__(self) -> int:
        return len(self.clip_of_example)

    def of_epoch(
        self, epoch: int, examples: Int[np.ndarray, " b"]
    ) -> tuple[Int[np.ndarray, " b"], list[str]]:
        """The clips of examples, as indices, and their captions."""
        clips = self.clip_of_example[examples]
        if self.caption_of_example is not None:
            chosen = self.caption_of_example[examples].tolist()
        else:
            chosen = [
                np.random.default_rng((self.seed, epoch, clip)).integers(
                    len(self.clips[clip].captions)
                )
                for clip in clips.tolist()
            ]
        pairs = zip(clips.tolist(), chosen, strict=True)
        return clips, [self.clips[clip].captions[i] for clip, i in pairs]


def count_examples(clips: Sequence[Clip], sampling: str) -> int:
    """The number of examples of an epoch, for a value of `data.sampling`."""
    return sum(bool(x.captions) if sampling == "videos" else len(x.captions) for x in clips)


def require_batch(clips: Sequence[Clip], sampling: str, batch_size: int) -> None:
    """Raises DataError if the training split has fewer examples than a batch."""
    if (count := count_examples(clips, sampling)) < batch_size:
        examples = "clips" if sampling == "videos" else "pairs of clip and caption"
        raise DataError(
            f"{count} {examples} in the training split do not fill a batch of {batch_size}: add "
            "clips or reduce train.batch_size"
        )

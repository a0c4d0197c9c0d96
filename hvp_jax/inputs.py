"""What a run reads: the clips that its config names, and where their pictures come from."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from data import annotations, exclude, pictures
from data.check import require_sound
from data.records import Clip
from hvp_jax.model import HVPNet
from hvp_jax.parallel import is_first, wait


def read_clips(config: ConfigDict) -> list[Clip]:
    """The clips of the data set a config names, but for those that `data.exclude` leaves out."""
    return read_data(config)[0]


def read_data(
    config: ConfigDict, splits: Sequence[str] | None = None
) -> tuple[list[Clip], list[Clip]]:
    """The clips of the data set a config names, and those that `data.exclude` leaves out.

    The videos of `splits` must be there, of all splits if it is None.
    """
    if not is_first():
        wait("process 0 has read the data set")  # it may have to make it
    data = config.data
    ids = exclude.read_ids(data.exclude)
    place = data.dataset, data.root, data.annotations, data.videos, data.protocol
    clips = annotations.read(*place, data.held_out, config.seed, ids, splits)
    left_out = []
    if ids:
        everything = annotations.read_all(*place).clips
        everything = annotations.hold_out(everything, data.held_out, config.seed)
        left_out = exclude.left_out(everything, ids)
    if is_first():
        wait("process 0 has read the data set")
    return clips, left_out


def open_source(config: ConfigDict, model: HVPNet, clips: Sequence[Clip]) -> pictures.Source:
    """Pictures of `clips`, which are known to be readable from here on."""
    clips = list({clip.clip_id: clip for clip in clips}.values())  # a split may play two parts
    if not config.data.shards:
        require_sound(clips)
    size = model.sizes.image_size
    data = config.data
    return pictures.open_source(clips, size, data.frames, data.shards, data.workers)


def width(config: ConfigDict, source: pictures.Source, least: int = 0) -> int:
    """How many frames the clips of a batch are padded to, `least` or more of them.

    No more than the longest clip has, for padding is masked: it changes a score by rounding.
    """
    frames = config.data.frames
    return min(frames, max(least, source.longest)) if config.similarity.mask_padding else frames

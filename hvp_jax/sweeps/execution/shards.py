"""The data of a sweep, decoded once for all runs that store the same."""

import hashlib
import json

from ml_collections import ConfigDict

from data.shards.reader import read_fingerprint
from data.storage.path import Path
from hvp_jax.config.schema import flatten
from hvp_jax.sweeps.execution.runs import Run

CLIPS = "clips"  # of the sweep's folder: the built-in clips, unless data.root names another place
SHARDS = "shards"
STORED = (  # the keys that shards depend on, besides the size of the frames
    *("data.dataset", "data.root", "data.annotations", "data.videos", "data.protocol"),
    *("data.exclude", "data.val_fraction", "data.val_seed", "data.max_frames"),
)


class Preparation(Run):
    """The verb `prepare`, whose `workdir` is the folder of the shards."""

    def is_finished(self) -> bool:
        return read_fingerprint(str(self.workdir)) is not None


def place(config: ConfigDict, folder: Path, image_size: int) -> str:
    """Sets `data.root` and `data.shards` of a config, in place, to folders in that of the sweep.

    Returns the new `data.shards`, which is the same for all configs whose shards are: those of
    the same clips, split, frames and `image_size`. "": the run reads the config's own shards, or
    the video files, since shards have evenly spaced frames only.
    """
    data, flat = config.data, flatten(config)
    stored = [flat[key] for key in STORED]
    if data.dataset == "shapes" and not data.root:
        data.root = str(folder / CLIPS)
    if data.shards or data.frame_choice != "uniform":
        return ""
    digest = hashlib.sha256(json.dumps([stored, image_size]).encode()).hexdigest()[:8]
    data.shards = str(folder / SHARDS / f"{data.max_frames}x{image_size}px-{digest}")
    return data.shards

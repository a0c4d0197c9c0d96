"""The TFDS builder of shards: what is in them, and which clips are in which file."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data.records import Broken, Clip
from data.shards import writer
from data.video.inspection import DecodeRequest
from data.worker_pool import Failed

# One file holds about this much before compression. A killed `prepare` loses at most
# one such file a process.
SHARD_BYTES = 128 << 20


def examples(
    clips: Sequence[Clip], size: int, frames: int, each: writer.DecodeEach
) -> Iterator[tuple[str, dict] | Broken]:
    """The key and the example of each clip, in their order, or what is wrong with it.

    `each` decodes, that is does `take`; a clip is broken if `doctor` would say so.
    """
    wanted = [DecodeRequest(clip.path, clip.start, clip.end, frames, size) for clip in clips]
    for clip, found in zip(clips, each(wanted), strict=True):
        if isinstance(found, str | Failed):
            reason = found if isinstance(found, str) else found.reason
            yield Broken(clip.clip_id, clip.path, reason)
            continue
        example = {"frames": found, "captions": list(clip.captions)}
        yield clip.clip_id, {"clip_id": clip.clip_id} | example


class Clips(tfds.core.ShardBasedBuilder):
    """Puts clips into shards in their own order, so that place i is clip i.

    A shard is a function of its own clips alone. GeneratorBasedBuilder will not do:
    it sorts what it gets, and beyond 1 GB a split it needs TensorFlow for that.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for a file of checksums beside this one would need
    # `importlib_resources`, which TFDS uses and does not install.
    url_infos = None

    def __init__(self, *, clips: Sequence[Clip], fingerprint: dict, data_dir: str):
        self._clips, self._fingerprint = clips, fingerprint
        self._size, self._frames = fingerprint["size"], fingerprint["frames"]
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (None, self._size, self._size, 3)
        features = {
            "clip_id": tfds.features.Text(),
            "frames": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        metadata = tfds.core.MetadataDict(self._fingerprint)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), metadata=metadata
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
        del dl_manager  # nothing is downloaded
        step = max(1, SHARD_BYTES // (self._frames * self._size**2 * 3))
        shards: dict[str, list[Callable]] = {}
        for split in self._fingerprint["clip_ids"]:
            clips = [clip for clip in self._clips if clip.split == split]
            shards[split] = [
                functools.partial(examples, clips[first : first + step], self._size, self._frames)
                for first in range(0, len(clips), step)
            ]
        return shards

    def tasks(self, folder: Path) -> dict[str, list[writer.ShardTask]]:
        """Of every split, the files to make in a folder of work."""
        tasks = {}
        for split, shards in self._shard_iterators_per_split(None).items():
            template = self._get_filename_template(split)
            paths = [
                template.sharded_filepath(shard_index=i, num_shards=len(shards))
                for i in range(len(shards))
            ]
            tasks[split] = [
                writer.ShardTask(folder, path.name, shard, self.info.features)
                for path, shard in zip(paths, shards, strict=True)
            ]
        return tasks

    def write_info(self, tasks: dict[str, list[writer.ShardTask]], directory: Path) -> None:
        """Writes into `directory` what TFDS must know of the finished files."""
        splits = []
        for split, files in tasks.items():
            facts = [writer.read_stats(task.folder, task.name) for task in files]
            lengths = [fact["examples"] for fact in facts]
            held = sum(fact["bytes"] for fact in facts)
            template = self._get_filename_template(split)
            splits.append(tfds.core.SplitInfo(split, lengths, held, template))
        self.info.set_splits(tfds.core.SplitDict(splits))
        self.info.write_to_directory(directory)

"""The TFDS builder of shards: the features of an example, and which clips are in which file."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.records import Broken, Clip
from data.shards import writer
from data.shards.staging import Staging, read_all_stats
from data.storage.path import Path
from data.video.inspection import DecodeRequest
from data.worker_process import Failed

# The frames in one file take about this much before compression. If `prepare` is killed, each
# process loses at most one such file.
SHARD_BYTES = 128 << 20


def examples(
    clips: Sequence[Clip], size: int, max_frames: int, decode_each: writer.DecodeEach
) -> Iterator[tuple[str, dict] | Broken]:
    """The key and the example of each clip, in order, or what is wrong with the clip.

    `decode_each` maps `decode_checked` over requests; a clip is broken if `doctor` would
    report it.
    """
    requests = [DecodeRequest(clip.path, clip.start, clip.end, max_frames, size) for clip in clips]
    for clip, result in zip(clips, decode_each(requests), strict=True):
        if isinstance(result, str | Failed):
            reason = result if isinstance(result, str) else result.reason
            yield Broken(clip.clip_id, clip.path, reason)
            continue
        example = {"frames": result, "captions": list(clip.captions)}
        yield clip.clip_id, {"clip_id": clip.clip_id} | example


class Clips(tfds.core.ShardBasedBuilder):
    """Writes clips in the given order, so that example i is clip i.

    A shard depends on its own clips only. GeneratorBasedBuilder cannot be used: it sorts
    the examples, and needs TensorFlow to do so for a split of more than 1 GB.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for a file of checksums beside this one would need
    # `importlib_resources`, which TFDS uses and does not install.
    url_infos = None

    def __init__(self, *, clips: Sequence[Clip], fingerprint: dict[str, Any], data_dir: str):
        self._clips, self._fingerprint = clips, fingerprint
        self._size, self._max_frames = fingerprint["size"], fingerprint["frames"]
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

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        del dl_manager  # nothing is downloaded
        step = max(1, SHARD_BYTES // (self._max_frames * self._size**2 * 3))
        shards: dict[str, list[Callable]] = {}
        for split in self._fingerprint["clip_ids"]:
            clips = [clip for clip in self._clips if clip.split == split]
            shards[split] = [
                functools.partial(
                    examples, clips[first : first + step], self._size, self._max_frames
                )
                for first in range(0, len(clips), step)
            ]
        return shards

    def tasks(self, staging: Staging) -> dict[str, list[writer.ShardTask]]:
        """The shards of each split, to be written into the staging folder."""
        tasks = {}
        for split, shards in self._shard_iterators_per_split(None).items():
            template = self._get_filename_template(split)
            paths = [
                template.sharded_filepath(shard_index=i, num_shards=len(shards))
                for i in range(len(shards))
            ]
            tasks[split] = [
                writer.ShardTask(staging, path.name, shard, self.info.features)
                for path, shard in zip(paths, shards, strict=True)
            ]
        return tasks

    def write_info(self, tasks: dict[str, list[writer.ShardTask]], directory: Path) -> None:
        """Writes the metadata files of TFDS for the finished shards into `directory`."""
        splits = []
        for split, shards in tasks.items():
            found = read_all_stats(shards[0].staging, [task.name for task in shards])
            stats = [shard for shard in found if shard is not None]
            assert len(stats) == len(shards), f"{split}: a shard is not finished"
            lengths = [shard["examples"] for shard in stats]
            num_bytes = sum(shard["bytes"] for shard in stats)
            template = self._get_filename_template(split)
            splits.append(tfds.core.SplitInfo(split, lengths, num_bytes, template))
        self.info.set_splits(tfds.core.SplitDict(splits))
        self.info.write_to_directory(directory)

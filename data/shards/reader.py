"""Random access to the shards that `prepare` wrote."""

import json
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from data.annotations.common import first_few
from data.errors import DataError, UsageError
from data.records import Clip
from data.shards.builder import Clips
from data.shards.fingerprint import changed_clips
from data.storage import files as storage
from data.storage import listing, patience
from data.storage.path import Path, is_bucket


def location_of(directory: str) -> Path:
    """Where TFDS keeps the shards of `prepare --config.data.shards=directory`."""
    return Path(directory, Clips.name, str(Clips.VERSION))


def read_fingerprint(directory: str) -> dict[str, Any] | None:
    """The fingerprint of the shards in `directory`; None if there are no complete shards."""
    try:
        prepared = json.loads(storage.read_text(location_of(directory) / "metadata.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if "texts" not in prepared:
        raise UsageError(
            f"{directory} contains shards of an older format: delete it and run `prepare` again"
        )
    return prepared


class Shards:
    """One split with random access: item i is {"clip_id", "frames", "captions"} of clip i.

    `frames` is uint8 [n, size, size, 3], `captions` a tuple of str. `clip_ids` lists the
    clips in order; `size` and `max_frames` are those of `prepare`. Its pickle is small, and
    several threads may read it. Reading raises DataError if a file is damaged.
    """

    def __init__(self, source: Any, directory: str, split: str, prepared: dict[str, Any]):
        self._source = source
        self._directory = directory
        self.clip_ids: list[str] = prepared["clip_ids"][split]
        self.size: int = prepared["size"]
        self.max_frames: int = prepared["frames"]

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            if is_bucket(self._directory):  # whose client tries for a quarter of an hour
                example = patience.answer(lambda: self._source[i], self._directory)
            else:
                example = self._source[i]
        except OSError as error:
            raise DataError(
                f"{self._directory}: clip {self.clip_ids[i]} cannot be read: {error.strerror}"
            ) from error
        except RuntimeError as error:  # what ArrayRecord raises if a checksum is wrong
            raise DataError(
                f"{self._directory}: clip {self.clip_ids[i]} cannot be read ({error}): "
                "copy or prepare the shards again"
            ) from error
        clip_id = example["clip_id"].decode()
        if clip_id != self.clip_ids[i]:
            raise DataError(
                f"{self._directory}: found clip {clip_id} instead of {self.clip_ids[i]}: "
                "prepare the shards again"
            )
        captions = tuple(caption.decode() for caption in example["captions"])
        return {"clip_id": clip_id, "frames": example["frames"], "captions": captions}


def open_shards(directory: str, split: str, clips: Sequence[Clip] = ()) -> Shards:
    """Opens one split of the shards that `prepare` wrote to `directory`.

    Raises UsageError if there are no complete shards or they have no such split, DataError if
    files are missing or truncated, as after an interrupted copy, or if `clips` of this
    split have changed since.
    """
    if is_bucket(directory) and not directory.startswith("gs:"):
        raise UsageError(
            f"data.shards is {directory}, and ArrayRecord files are read from gs:// or from a disk "
            "only; copy them to gs:// or to a folder of each host"
        )
    prepared = read_fingerprint(directory)
    if prepared is None:
        raise UsageError(f"{directory} contains no finished shards: run `prepare` first")
    if split not in prepared["clip_ids"]:
        available = ", ".join(prepared["clip_ids"])
        raise UsageError(
            f"{directory} contains no split {split}, only {available}: run `prepare` with it"
        )
    if changed := changed_clips(prepared, split, clips):
        first = first_few(changed)
        raise DataError(
            f"{directory}: {len(changed)} clips of the split {split} have changed since "
            f"`prepare`: {first}; undo the change or run `prepare` into another directory"
        )
    dataset = tfds.builder_from_directory(location_of(directory))
    info = dataset.info.splits[split]
    num_bytes = sum(listing.sizes(info.filepaths).values())
    if num_bytes != info.num_bytes:
        raise DataError(
            f"{directory}: files of the split {split} are missing or truncated: "
            "copy or prepare the shards again"
        )
    return Shards(dataset.as_data_source(split), directory, split, prepared)

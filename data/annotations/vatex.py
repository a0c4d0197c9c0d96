"""VATEX: segments of YouTube videos, ten English captions each.

An id ends in the start and end second, `XXXXXXXXXXX_000012_000022`. A file of that name is
already cut; one named by YouTube's id alone is the full video. `protocol` is the name of the
test split's list, without `.txt`: two different lists are in use.
"""

import dataclasses
import os
import re

from data.annotations import common, files
from data.errors import DataError, UsageError
from data.records import Annotations, Clip, DatasetLocation
from data.storage import files as storage

SEGMENT_ID = re.compile(r"(?P<video>.+)_(?P<start>\d{6})_(?P<end>\d{6})")


def read(location: DatasetLocation) -> Annotations:
    """The clips of the three lists. Raises UsageError if the test list is ambiguous."""
    folder = location.annotations
    lists = {
        split: files.find_annotation_file(folder, f"{split}_list.txt") for split in ("train", "val")
    }
    lists["test"] = _test_list(folder, location.protocol)
    captions = _read_captions(folder)
    splits = {split: (files.read_ids(path), captions) for split, path in lists.items()}
    paths = common.index_videos(location.videos)

    def path_of(clip_id: str) -> str:
        segment = SEGMENT_ID.fullmatch(clip_id)
        video_id = segment["video"] if segment else clip_id
        return common.match_video(paths, clip_id) or common.match_video(paths, video_id)

    annotations = common.build_clips(folder, splits, path_of)
    return annotations._replace(clips=[_with_segment(clip) for clip in annotations.clips])


def _with_segment(clip: Clip) -> Clip:
    """The clip with its start and end, if its file is the full video."""
    segment = SEGMENT_ID.fullmatch(clip.clip_id)
    name = os.path.basename(clip.path)
    if not segment or not name or clip.clip_id in (name, os.path.splitext(name)[0]):
        return clip
    start, end = float(segment["start"]), float(segment["end"])
    if start >= end:
        raise DataError(f"id {clip.clip_id!r}: its start is not before its end; correct the lists")
    return dataclasses.replace(clip, start=start, end=end)


def _test_list(folder: str, protocol: str) -> str:
    lists = [
        name
        for name in storage.names(folder)
        if name[0] != "." and "test" in name.lower() and name.lower().endswith(".txt")
    ]
    stems = [os.path.splitext(name)[0] for name in lists]
    if protocol and protocol not in stems:
        raise UsageError(
            f"data.protocol is {protocol!r}: {folder} has no test list {protocol}.txt;"
            f" it has {', '.join(lists) or 'none'}"
        )
    if len(lists) > 1 and not protocol:
        raise UsageError(
            f"{folder} has several test lists: {', '.join(lists)}; choose one with"
            f" --config.data.protocol={stems[0]}"
        )
    if not lists:
        return files.find_annotation_file(folder, "test_list.txt")
    return os.path.join(folder, lists[stems.index(protocol) if protocol else 0])


def _read_captions(folder: str) -> dict[str, list[str]]:
    """Id -> captions, from all `vatex_*.json` (one file per split), or else from one file."""
    names = [n for n in storage.names(folder) if re.fullmatch(r"vatex_.*\.json", n, re.I)]
    if not names:
        path = files.find_annotation_file(folder, "vatex_training_v1.0.json", "*caption*.json")
        with files.expecting(path, "{id: [caption]}"):
            content = files.check_type(dict, files.read_json(path), "it")
            return {clip_id: common.clean_all(texts, clip_id) for clip_id, texts in content.items()}
    captions: dict[str, list[str]] = {}
    for path in (os.path.join(folder, name) for name in names):
        with files.expecting(path, '[{"videoID": id, "enCap": [caption]}]'):
            for number, row in enumerate(files.check_type(list, files.read_json(path), "it"), 1):
                clip_id = files.field(row, "videoID", str, f"item {number}").strip()
                # One of the files has no captions, one only Chinese ones.
                texts = common.clean_all(row.get("enCap", []), clip_id)
                if texts and captions.setdefault(clip_id, texts) != texts:
                    raise DataError(
                        f"{path}: {clip_id!r} has other captions in another file"
                        f" vatex_*.json of {folder}; leave only one of them there"
                    )
    return captions

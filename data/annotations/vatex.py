"""VATEX: stretches of YouTube videos, ten English captions each.

An id ends in the start and end second, `XXXXXXXXXXX_000012_000022`. A file of that name is
cut already; one with YouTube's id alone is the whole video. `protocol` is the name of the
list of the test split, without `.txt`: two different ones go about.
"""

import dataclasses
import os
import re

from data.annotations import common
from data.errors import DataError, UsageError
from data.records import Annotations, Clip

STRETCH = re.compile(r"(?P<video>.+)_(?P<start>\d{6})_(?P<end>\d{6})")


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """The clips of the three lists. Raises UsageError if the test list is in doubt."""
    lists = {
        split: common.find_annotation_file(annotations, f"{split}_list.txt")
        for split in ("train", "val")
    }
    lists["test"] = _test_list(annotations, protocol)
    captions = _read_captions(annotations)
    splits = {split: (common.read_ids(path), captions) for split, path in lists.items()}
    paths = common.index_videos(videos)

    def path_of(clip_id: str) -> str:
        stretch = STRETCH.fullmatch(clip_id)
        whole = stretch["video"] if stretch else clip_id
        return common.match_video(paths, clip_id) or common.match_video(paths, whole)

    found = common.build_clips(annotations, splits, path_of)
    return found._replace(clips=[_placed(clip) for clip in found.clips])


def _placed(clip: Clip) -> Clip:
    """A clip with its seconds, if its file is the whole video."""
    stretch = STRETCH.fullmatch(clip.clip_id)
    name = os.path.basename(clip.path)
    if not stretch or not name or clip.clip_id in (name, os.path.splitext(name)[0]):
        return clip
    start, end = float(stretch["start"]), float(stretch["end"])
    if start >= end:
        raise DataError(f"id {clip.clip_id!r}: its start is not before its end; correct the lists")
    return dataclasses.replace(clip, start=start, end=end)


def _test_list(folder: str, protocol: str) -> str:
    there = sorted(
        name
        for name in os.listdir(folder)
        if name[0] != "." and "test" in name.lower() and name.lower().endswith(".txt")
    )
    stems = [os.path.splitext(name)[0] for name in there]
    if protocol and protocol not in stems:
        raise UsageError(
            f"data.protocol is {protocol!r}: {folder} has no test list {protocol}.txt;"
            f" it has {', '.join(there) or 'none'}"
        )
    if len(there) > 1 and not protocol:
        raise UsageError(
            f"{folder} holds several test lists: {', '.join(there)}; say which one with"
            f" --config.data.protocol={stems[0]}"
        )
    if not there:
        return common.find_annotation_file(folder, "test_list.txt")
    return os.path.join(folder, there[stems.index(protocol) if protocol else 0])


def _read_captions(folder: str) -> dict[str, list[str]]:
    """Of all `vatex_*.json` together, which have a file a split; else of `ref_captions.json`."""
    names = [n for n in sorted(os.listdir(folder)) if re.fullmatch(r"vatex_.*\.json", n, re.I)]
    if not names:
        path = common.find_annotation_file(folder, "vatex_training_v1.0.json", "*caption*.json")
        with common.expecting(path, "{id: [caption]}"):
            content = common.read_json(path)
            return {clip_id: common.strings(texts) for clip_id, texts in content.items()}
    captions: dict[str, list[str]] = {}
    for path in (os.path.join(folder, name) for name in names):
        with common.expecting(path, '[{"videoID": id, "enCap": [caption]}]'):
            for row in common.read_json(path):
                # One of the files is without captions, one is in Chinese alone.
                texts = common.strings(row.get("enCap", []))
                if texts and captions.setdefault(row["videoID"].strip(), texts) != texts:
                    raise DataError(
                        f"{path}: {row['videoID']!r} has other captions than in another file"
                        f" vatex_*.json of {folder}; leave only one of them there"
                    )
    return captions

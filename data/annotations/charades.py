"""Charades: everyday activities, 30 s per video, each described by several people.

A row has a video's descriptions in one field, separated by `;`: each is a caption.
"""

from data.annotations import common, files
from data.records import Annotations, DatasetLocation


def read(location: DatasetLocation) -> Annotations:
    """The clips of the two tables. Raises DataError for bad files."""
    splits = {}
    for split in ("train", "test"):
        captions: dict[str, list[str]] = {}
        table = files.find_annotation_file(location.annotations, f"Charades_v1_{split}.csv")
        for video_id, descriptions in files.read_table(table, "id", "descriptions"):
            texts = captions.setdefault(video_id, [])
            texts += [common.clean(text) for text in descriptions.split(";")]
        splits[split] = (captions, captions)
    paths = common.index_videos(location.videos)
    return common.build_clips(
        location.annotations, splits, lambda video_id: common.match_video(paths, video_id)
    )

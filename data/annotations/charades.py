"""Charades: half a minute of everyday doings, described by several people.

A row has a clip's descriptions in one field, separated by `;`: each is a caption.
"""

from data.annotations import common
from data.records import Annotations


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """The clips of the two tables. Raises DataError for bad files."""
    del protocol  # there is but one
    splits = {}
    for split in ("train", "test"):
        captions: dict[str, list[str]] = {}
        table = common.find_annotation_file(annotations, f"Charades_v1_{split}.csv")
        for video_id, descriptions in common.read_table(table, "id", "descriptions"):
            texts = captions.setdefault(video_id, [])
            texts += [common.clean(text) for text in descriptions.split(";")]
        splits[split] = (captions, captions)
    paths = common.index_videos(videos)
    return common.build_clips(
        annotations, splits, lambda video_id: common.match_video(paths, video_id)
    )

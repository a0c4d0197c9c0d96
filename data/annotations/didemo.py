"""DiDeMo: Flickr videos; the descriptions of a video's moments, joined, are its paragraph.

Ids are file names of every extension, one of them a bare dot; a file may have kept its
name, got another extension or one more (`X.avi`, `X.mp4`, `X.avi.mp4`). Here an id is the
name without extension.
"""

import os

from data.annotations import common
from data.records import Annotations


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """One clip a video, with one paragraph. Raises DataError for bad files."""
    del protocol  # there is but one
    splits, names = {}, {}  # names: id -> all spellings of its file name
    for split in ("train", "val", "test"):
        paragraphs = _read_paragraphs(
            common.find_annotation_file(annotations, f"{split}_data.json"), names
        )
        listed = common.find_annotation_file(annotations, f"{split}_list.txt", optional=True)
        ids = list(paragraphs)
        if listed:
            ids = [_note(name, names) for name in common.read_ids(listed)]
        splits[split] = (ids, paragraphs)
    paths = common.index_videos(videos)

    def path_of(video_id: str) -> str:
        return common.match_video(paths, *names[video_id]) or common.match_video(paths, video_id)

    return common.build_clips(annotations, splits, path_of)


def _read_paragraphs(path: str, names: dict[str, set[str]]) -> dict[str, list[str]]:
    """Id -> its paragraph, alone in a list; adds the file names to `names`."""
    texts: dict[str, list[str]] = {}
    with common.expecting(path, '[{"video": file name, "description": text}]'):
        for row in common.read_json(path):
            video_id = _note(row["video"].strip(), names)
            texts.setdefault(video_id, []).append(row["description"])
        return {video_id: [common.clean(" ".join(parts))] for video_id, parts in texts.items()}


def _note(name: str, names: dict[str, set[str]]) -> str:
    """The id of a file name, which is added to `names`."""
    stem, extension = os.path.splitext(name)
    video_id = stem if extension == "." or common.is_video(name) else name
    names.setdefault(video_id, set()).add(name)
    return video_id

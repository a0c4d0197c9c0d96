"""DiDeMo: Flickr videos; the descriptions of a video's moments, joined, are its paragraph.

The annotations name videos by file name, with various extensions, one of them a bare dot. A
downloaded file may have that name, another extension or a second one (`X.avi`, `X.mp4`,
`X.avi.mp4`). Here a video's id is the name without extension.
"""

import os

from data.annotations import common, files
from data.records import Annotations, DatasetLocation


def read(location: DatasetLocation) -> Annotations:
    """One clip per video, with one paragraph. Raises DataError for bad files."""
    splits = {}
    names: dict[str, set[str]] = {}  # id -> all spellings of its file name
    for split in ("train", "val", "test"):
        paragraphs = _read_paragraphs(
            files.find_annotation_file(location.annotations, f"{split}_data.json"), names
        )
        listed = files.find_annotation_file(
            location.annotations, f"{split}_list.txt", optional=True
        )
        ids = list(paragraphs)
        if listed:
            ids = [_add_name(name, names) for name in files.read_ids(listed)]
        splits[split] = (ids, paragraphs)
    paths = common.index_videos(location.videos)

    def path_of(video_id: str) -> str:
        return common.match_video(paths, *names[video_id]) or common.match_video(paths, video_id)

    return common.build_clips(location.annotations, splits, path_of)


def _read_paragraphs(path: str, names: dict[str, set[str]]) -> dict[str, list[str]]:
    """Id -> a list of its one paragraph; adds the file names to `names`."""
    texts: dict[str, list[str]] = {}
    with files.expecting(path, '[{"video": file name, "description": text}]'):
        for number, row in enumerate(files.check_type(list, files.read_json(path), "it"), 1):
            name = files.field(row, "video", str, f"item {number}").strip()
            description = files.field(row, "description", str, f"item {number} ({name!r})")
            texts.setdefault(_add_name(name, names), []).append(description)
        return {video_id: [common.clean(" ".join(parts))] for video_id, parts in texts.items()}


def _add_name(name: str, names: dict[str, set[str]]) -> str:
    """Adds a file name to `names` and returns its id."""
    stem, extension = os.path.splitext(name)
    video_id = stem if extension == "." or common.is_video(name) else name
    names.setdefault(video_id, set()).add(name)
    return video_id

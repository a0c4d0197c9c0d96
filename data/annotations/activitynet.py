"""ActivityNet Captions: YouTube videos; the sentences of a video, joined, are its paragraph.

As in the field, `val_1.json` is the test split. Some listed ids have no captions.
"""

from data.annotations import common
from data.records import Annotations


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """One clip a video, with one paragraph. Raises DataError for bad files."""
    del protocol  # there is but one
    splits = {}
    for split, captions, listed in (
        ("train", "train.json", "train_ids.json"),
        ("test", "val_1.json", "val_ids.json"),
    ):
        paragraphs = _read_paragraphs(common.find_annotation_file(annotations, captions))
        ids = common.find_annotation_file(annotations, listed, optional=True)
        splits[split] = (common.read_ids(ids) if ids else paragraphs, paragraphs)
    paths = common.index_videos(videos)

    def path_of(video_id: str) -> str:
        # Downloads are named by YouTube's id, which has no `v_`.
        return common.match_video(paths, video_id, video_id.removeprefix("v_"))

    return common.build_clips(annotations, splits, path_of)


def _read_paragraphs(path: str) -> dict[str, list[str]]:
    """Id -> its paragraph, alone in a list."""
    with common.expecting(path, '{id: {"sentences": [text]}}'):
        return {
            video_id.strip(): [common.clean(" ".join(row["sentences"]))]
            for video_id, row in common.read_json(path).items()
        }

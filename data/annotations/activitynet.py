"""ActivityNet Captions: YouTube videos; the sentences of a video, joined, are its paragraph.

As is usual, `val_1.json` is the test split. Some listed ids have no captions.
"""

from data.annotations import common, files
from data.records import Annotations, DatasetLocation


def read(location: DatasetLocation) -> Annotations:
    """One clip per video, with one paragraph. Raises DataError for bad files."""
    splits = {}
    for split, captions, listed in (
        ("train", "train.json", "train_ids.json"),
        ("test", "val_1.json", "val_ids.json"),
    ):
        paragraphs = _read_paragraphs(files.find_annotation_file(location.annotations, captions))
        ids = files.find_annotation_file(location.annotations, listed, optional=True)
        splits[split] = (files.read_ids(ids) if ids else paragraphs, paragraphs)
    paths = common.index_videos(location.videos)

    def path_of(video_id: str) -> str:
        # Downloads are named by YouTube's id, which has no `v_`.
        return common.match_video(paths, video_id, video_id.removeprefix("v_"))

    return common.build_clips(location.annotations, splits, path_of)


def _read_paragraphs(path: str) -> dict[str, list[str]]:
    """Id -> a list of its one paragraph."""
    with files.expecting(path, '{id: {"sentences": [text]}}'):
        paragraphs = {}
        for video_id, row in files.check_type(dict, files.read_json(path), "it").items():
            sentences = files.field(row, "sentences", list, repr(video_id))
            common.check_texts(sentences, "sentence", video_id)
            paragraphs[video_id.strip()] = [common.clean(" ".join(sentences))]
        return paragraphs

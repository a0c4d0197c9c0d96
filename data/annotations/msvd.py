"""MSVD: short YouTube clips with some 40 captions each, all of them queries.

The captions come as a pickle (id -> lists of words) or as JSON (id -> texts).
"""

import io
import pickle
from typing import Any

from data.annotations import common
from data.errors import DataError
from data.records import Annotations

CAPTIONS = ("raw-captions.pkl", "*caption*.pkl", "*caption*.json")


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """The clips of the three lists. Raises DataError for bad files."""
    del protocol  # there is but one
    path = common.find_annotation_file(annotations, *CAPTIONS)
    content = common.read_json(path) if path.lower().endswith(".json") else read_pickle(path)
    with common.expecting(path, "{id: [caption]}"):
        captions = {video_id.strip(): _captions(texts) for video_id, texts in content.items()}
    splits = {
        split: (
            common.read_ids(common.find_annotation_file(annotations, f"{split}_list.txt")),
            captions,
        )
        for split in ("train", "val", "test")
    }
    paths = common.index_videos(videos)
    return common.build_clips(
        annotations, splits, lambda video_id: common.match_video(paths, video_id)
    )


def _captions(texts: Any) -> list[str]:
    if isinstance(texts, list):
        texts = [text if isinstance(text, str) else " ".join(text) for text in texts]
    return common.strings(texts)


class _Plain(pickle.Unpickler):
    """Knows no class and no function, so that nothing in a pickle can run."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not executed")


def read_pickle(path: str) -> Any:
    """Lists, tuples, dicts, texts and numbers of a pickle; DataError if it holds anything else."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        # Texts that Python 2 pickled are bytes to Python 3.
        return _Plain(io.BytesIO(content), encoding="utf-8").load()
    except Exception as error:  # a broken pickle makes any of them
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: no pickle of plain lists and texts: {why}; get the file again, or the"
            " captions as JSON"
        ) from None

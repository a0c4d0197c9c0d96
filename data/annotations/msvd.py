"""MSVD: short YouTube clips with about 40 captions each; in evaluation each is a query.

The captions are a pickle (id -> lists of words) or JSON (id -> texts).
"""

import io
import pickle
from typing import Any

from data.annotations import common, files
from data.errors import DataError
from data.records import Annotations, DatasetLocation
from data.storage import files as storage

CAPTIONS = ("raw-captions.pkl", "*caption*.pkl", "*caption*.json")


def read(location: DatasetLocation) -> Annotations:
    """The clips of the three lists. Raises DataError for bad files."""
    folder = location.annotations
    path = files.find_annotation_file(folder, *CAPTIONS)
    content = files.read_json(path) if path.lower().endswith(".json") else read_pickle(path)
    with files.expecting(path, "{id: [caption]}"):
        captions = {
            files.check_type(str, video_id, "an id").strip(): _captions(video_id, texts)
            for video_id, texts in files.check_type(dict, content, "it").items()
        }
    splits = {
        split: (
            files.read_ids(files.find_annotation_file(folder, f"{split}_list.txt")),
            captions,
        )
        for split in ("train", "val", "test")
    }
    paths = common.index_videos(location.videos)
    return common.build_clips(folder, splits, lambda video_id: common.match_video(paths, video_id))


def _captions(video_id: str, texts: Any) -> list[str]:
    if isinstance(texts, list):
        texts = [
            " ".join(common.check_texts(list(text), f"caption {number}, word", video_id))
            if isinstance(text, list | tuple)
            else text
            for number, text in enumerate(texts, 1)
        ]
    return common.clean_all(texts, video_id)


class _PlainUnpickler(pickle.Unpickler):
    """Loads no class and no function, so that a pickle cannot execute code."""

    def find_class(self, module: str, name: str) -> None:
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not loaded")


def read_pickle(path: str) -> Any:
    """A pickle of lists, tuples, dicts, texts and numbers; raises DataError for anything else."""
    with files.readable(path):
        content = storage.read_bytes(path)
    try:
        # Strings pickled by Python 2 are bytes for Python 3; `encoding` decodes them.
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except Exception as error:  # a broken pickle can raise any exception
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: not a pickle of plain lists and texts: {why}; get the file again, or the"
            " captions as JSON"
        ) from None

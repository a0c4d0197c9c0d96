"""MSR-VTT: 10,000 clips of web videos, 20 captions each.

`protocol` is "9k" (what "" means) or "7k": the 1,000 test clips of JSFusion ("1k-A"), each
with the one sentence of its table, and 9,000 or 7,010 clips to train on; or "full": the
splits as published, all captions.
"""

from data.annotations import common
from data.errors import DataError, UsageError
from data.records import Annotations

CAPTIONS = ("MSRVTT_data.json", "MSR_VTT.json", "MSR-VTT.json")
HALVES = ("train_val_videodatainfo.json", "test_videodatainfo.json")  # as first published
TRAIN = {
    "9k": ("MSRVTT_train.9k.csv", "MSRVTT_train.9000.csv", "MSRVTT_train_9k.csv"),
    "7k": ("MSRVTT_train.7k.csv", "MSRVTT_train.7000.csv", "MSRVTT_train.7010.csv"),
}
TEST = ("MSRVTT_JSFUSION_test.csv", "MSRVTT_test.1000.csv", "MSRVTT_test.1k.csv")
SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """The clips of a protocol. Raises UsageError for an unknown one, DataError for bad files."""
    protocol = protocol or "9k"
    if protocol not in (*TRAIN, "full"):
        raise UsageError(f"data.protocol {protocol!r} is unknown; msrvtt has 9k, 7k, full")
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for path in _caption_files(annotations):
        content = common.read_json(path)
        _add_captions(path, content, captions)
        if protocol == "full":
            split_of |= _read_splits(path, content)
    paths = common.index_videos(videos)
    if protocol == "full":
        splits = {
            split: ([video_id for video_id, of in split_of.items() if of == split], captions)
            for split in ("train", "val", "test")
        }
    else:
        train = common.read_table(
            common.find_annotation_file(annotations, *TRAIN[protocol]), "video_id"
        )
        test = common.read_table(
            common.find_annotation_file(annotations, *TEST), "video_id", "sentence"
        )
        queries: dict[str, list[str]] = {}
        for video_id, sentence in test:
            queries.setdefault(video_id, []).append(common.clean(sentence))
        splits = {"train": (dict.fromkeys(v for (v,) in train), captions)}
        splits["test"] = (queries, queries)
    return common.build_clips(
        annotations, splits, lambda video_id: common.match_video(paths, video_id)
    )


def _caption_files(folder: str) -> list[str]:
    whole = common.find_annotation_file(folder, *CAPTIONS, optional=True)
    if whole:
        return [whole]
    first = common.find_annotation_file(folder, *CAPTIONS, HALVES[0])
    second = common.find_annotation_file(folder, HALVES[1], optional=True)
    return [first, second] if second else [first]


def _add_captions(path: str, content: dict, captions: dict[str, list[str]]) -> None:
    """Two schemas of the same file go about."""
    with common.expecting(path, '{"sentences": [{"video_id": id, "caption": text}]}'):
        key, name = "sentences", "video_id"
        if key not in content and "annotations" in content:
            key, name = "annotations", "image_id"
        for row in content[key]:
            captions.setdefault(row[name].strip(), []).append(common.clean(row["caption"]))


def _read_splits(path: str, content: dict) -> dict[str, str]:
    with common.expecting(path, '{"videos": [{"video_id": id, "split": name}]}'):
        videos = content.get("videos", [])
        told = {row["video_id"]: row["split"] for row in videos if "split" in row}
        if not told or len(told) < len(videos) or not set(told.values()) <= SPLITS.keys():
            raise DataError(
                f"{path}: its videos have no 'split' of {', '.join(SPLITS)}, which data.protocol"
                f" full needs; other copies of {CAPTIONS[0]} do, and 9k and 7k"
                " need none"
            )
        return {video_id: SPLITS[split] for video_id, split in told.items()}

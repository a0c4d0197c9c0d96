"""MSR-VTT: 10,000 clips of web videos, 20 captions each.

`protocol` is "9k" (the default, also "") or "7k": the 1,000 test clips of JSFusion ("1k-A"),
each with the one sentence in its table, and 9,000 or 7,010 training clips; or "full": the
splits as published, all captions.
"""

from data.annotations import common, files
from data.errors import DataError, UsageError
from data.records import Annotations, DatasetLocation

CAPTIONS = ("MSRVTT_data.json", "MSR_VTT.json", "MSR-VTT.json")
HALVES = ("train_val_videodatainfo.json", "test_videodatainfo.json")  # as first published
TRAIN = {
    "9k": ("MSRVTT_train.9k.csv", "MSRVTT_train.9000.csv", "MSRVTT_train_9k.csv"),
    "7k": ("MSRVTT_train.7k.csv", "MSRVTT_train.7000.csv", "MSRVTT_train.7010.csv"),
}
TEST = ("MSRVTT_JSFUSION_test.csv", "MSRVTT_test.1000.csv", "MSRVTT_test.1k.csv")
SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}


def read(location: DatasetLocation) -> Annotations:
    """The clips of a protocol. Raises UsageError for an unknown one, DataError for bad files."""
    folder, protocol = location.annotations, location.protocol or "9k"
    if protocol not in (*TRAIN, "full"):
        raise UsageError(f"data.protocol {protocol!r} is unknown; msrvtt has 9k, 7k, full")
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    for path in _caption_files(folder):
        content = files.read_json(path)
        _add_captions(path, content, captions)
        if protocol == "full":
            split_of |= _read_splits(path, content)
    paths = common.index_videos(location.videos)
    splits: dict[str, tuple[list[str], common.Captions]]
    if protocol == "full":
        splits = {
            split: ([video_id for video_id, s in split_of.items() if s == split], captions)
            for split in ("train", "val", "test")
        }
    else:
        train = files.read_table(files.find_annotation_file(folder, *TRAIN[protocol]), "video_id")
        test = files.read_table(files.find_annotation_file(folder, *TEST), "video_id", "sentence")
        queries: dict[str, list[str]] = {}
        for video_id, sentence in test:
            queries.setdefault(video_id, []).append(common.clean(sentence))
        train_ids = list(dict.fromkeys(video_id for (video_id,) in train))
        splits = {"train": (train_ids, captions), "test": (list(queries), queries)}
    return common.build_clips(folder, splits, lambda video_id: common.match_video(paths, video_id))


def _caption_files(folder: str) -> list[str]:
    single = files.find_annotation_file(folder, *CAPTIONS, optional=True)
    if single:
        return [single]
    first = files.find_annotation_file(folder, *CAPTIONS, HALVES[0])
    second = files.find_annotation_file(folder, HALVES[1], optional=True)
    return [first, second] if second else [first]


def _add_captions(path: str, content: dict, captions: dict[str, list[str]]) -> None:
    """Adds to `captions`; accepts the published schema and one in the style of COCO."""
    with files.expecting(path, '{"sentences": [{"video_id": id, "caption": text}]}'):
        key, name = "sentences", "video_id"
        if key not in files.check_type(dict, content, "it") and "annotations" in content:
            key, name = "annotations", "image_id"
        for number, row in enumerate(files.field(content, key, list, "it"), 1):
            where = f"item {number} of {key!r}"
            video_id = files.field(row, name, str, where).strip()
            caption = files.field(row, "caption", str, f"{where} ({video_id!r})")
            captions.setdefault(video_id, []).append(common.clean(caption))


def _read_splits(path: str, content: dict) -> dict[str, str]:
    with files.expecting(path, '{"videos": [{"video_id": id, "split": name}]}'):
        videos = files.field({"videos": []} | content, "videos", list, "it")
        splits = {}
        for number, row in enumerate(videos, 1):
            where = f"item {number} of 'videos'"
            video_id = files.field(row, "video_id", str, where)
            if "split" in row:
                splits[video_id] = files.field(row, "split", str, f"{where} ({video_id!r})")
        if not splits or len(splits) < len(videos) or not set(splits.values()) <= SPLITS.keys():
            raise DataError(
                f"{path}: its videos have no 'split' out of {', '.join(SPLITS)}, which"
                f" data.protocol full needs; use the published {CAPTIONS[0]}, or protocol 9k or 7k"
            )
        return {video_id: SPLITS[split] for video_id, split in splits.items()}

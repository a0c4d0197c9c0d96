"""Writes annotation files in the formats of the published ones, of any size, and reads them."""

import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from data import inputs
from data.errors import DataError
from data.records import Annotations, Clip, DatasetLocation


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def table(path: Path, *rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def spread(total: int, videos: int) -> list[int]:
    """A number of captions for each video; they add up to `total`."""
    return [total // videos + (i < total % videos) for i in range(videos)]


def msrvtt(folder: Path, train: int = 4, val: int = 1, test: int = 3, each: int = 2) -> None:
    """`train` and `val` ids are in the 7k list; half of the `test` ids are in 1k-A's test list.

    As in the published files, the 9k list has all ids except those of 1k-A's test list.
    """
    splits = ["train"] * train + ["validate"] * val + ["test"] * test
    ids = [f"video{i}" for i in range(len(splits))]
    videos = [
        {"video_id": v, "split": split, "category": 9, "start time": 1.5, "end time": 9.0, "id": i}
        for i, (v, split) in enumerate(zip(ids, splits, strict=True))
    ]
    rows = [{"caption": f"{v} caption {k}", "video_id": v} for v in ids for k in range(each)]
    sentences = [row | {"sen_id": i} for i, row in enumerate(rows)]
    content = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}
    write(folder / "MSRVTT_data.json", json.dumps(content))
    queries = ids[train + val + test // 2 :]
    table(
        folder / "MSRVTT_JSFUSION_test.csv",
        ["key", "vid_key", "video_id", "sentence"],
        *([f"ret{i}", f"msr{v[5:]}", v, f"{v} query"] for i, v in enumerate(queries)),
    )
    table(folder / "MSRVTT_train.9k.csv", ["video_id"], *([v] for v in ids if v not in queries))
    table(folder / "MSRVTT_train.7k.csv", ["video_id"], *([v] for v in ids[: train + val]))


def didemo(folder: Path, train: int = 2, val: int = 1, test: int = 1) -> None:
    """Three descriptions per video, not in consecutive rows; names with various extensions."""
    first = 0
    for split, count in {"train": train, "val": val, "test": test}.items():
        numbers = range(first, first + count)
        names = [f"1{i}@N0_{i}_a{i}.{('mov', 'avi', 'MP4', '3gp', '')[i % 5]}" for i in numbers]
        rows = [
            {"annotation_id": k, "description": f"part {k}", "times": [[0, 0]], "video": name}
            for k in range(3)
            for name in names
        ]
        write(folder / f"{split}_data.json", json.dumps(rows))
        write(folder / f"{split}_list.txt", "".join(f"{name}\n" for name in names))
        first += count


def activitynet(folder: Path, counts: dict[str, tuple[int, int]]) -> None:
    """`counts`: split -> number of its paragraphs, number of its listed ids."""
    for split, captions, listed in (("train", "train", "train"), ("test", "val_1", "val")):
        with_captions, num_ids = counts[split]
        ids = [f"v_{split:_<5}{i:06d}" for i in range(num_ids)]
        rows = {
            v: {"duration": 9.5, "timestamps": [[0, 3.5], [3, 9.5]], "sentences": ["A b.", " C d."]}
            for v in ids[:with_captions]
        }
        write(folder / f"{captions}.json", json.dumps(rows))
        write(folder / f"{listed}_ids.json", json.dumps(ids))


def lsmdc(folder: Path, train: int = 2, val: int = 1, test: int = 1) -> None:
    names = {
        "annos_training": ("0001_American_Beauty", train),
        "annos_val": ("1010_TITANIC", val),
        "challenge_1000_publictect": ("3009_BATTLE_LOS_ANGELES", test),
    }
    for name, (film, count) in names.items():
        lines = [
            f"{film}_00.{i:06d}.926-00.{i:06d}.129\t00:00:51.926\t00:00:54.129\t00:00:51.425"
            f'\t00:00:54.629\t"SOMEONE" walks, {i} steps.\n'
            for i in range(count)
        ]
        write(folder / f"LSMDC16_{name}.csv", "".join(lines))


MSVD = {"train": (1200, 48774), "val": (100, 4290), "test": (670, 27763)}


def msvd(folder: Path, counts: dict[str, tuple[int, int]], kind: str = "pkl") -> None:
    """`counts`: split -> number of its videos, number of all their captions."""
    captions = {}
    for split, (videos, total) in counts.items():
        ids = [f"-4{split}_{i}_{i + 9}" for i in range(videos)]
        sizes = dict(zip(ids, spread(total, videos), strict=True))
        captions |= {v: [["a", "man", str(k)] for k in range(size)] for v, size in sizes.items()}
        end = "" if split == "val" else "\n"  # as in the published files
        write(folder / f"{split}_list.txt", "\n".join(sizes) + end)
    if kind == "pkl":
        (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    else:
        texts = {v: [" ".join(words) for words in each] for v, each in captions.items()}
        write(folder / "captions_msvd.json", json.dumps(texts))


def vatex(folder: Path, train: int = 2, val: int = 1, test: int = 1) -> None:
    """As published, the captions of val and test are in the validation file."""
    counts = {"train": train, "val": val, "test": test}
    ids = {s: [f"{s:_<5}{i:06d}_000012_000022" for i in range(n)] for s, n in counts.items()}
    for split, split_ids in ids.items():
        write(folder / f"{split}_list.txt", "".join(f"{v}\n" for v in split_ids))
    for name, file_ids in (("training", ids["train"]), ("validation", ids["val"] + ids["test"])):
        rows = [
            {"videoID": v, "enCap": [f"A cap {k}." for k in range(10)], "chCap": ["猫"] * 10}
            for v in file_ids
        ]
        write(folder / f"vatex_{name}_v1.0.json", json.dumps(rows))
    hidden = [{"videoID": "hidden_____0_000000_000010"}]
    write(folder / "vatex_private_test_without_annotations.json", json.dumps(hidden))


def charades(folder: Path, train: int = 2, test: int = 1) -> None:
    header = (
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
    )
    for split, count in {"train": train, "test": test}.items():
        table(
            folder / f"Charades_v1_{split}.csv",
            header.split(","),
            *(
                [f"{split[:2]}{i:03d}", "HR43", "Kitchen", 6, 7, "Yes", "A person, in\na kitchen."]
                + ["food;bag", "A person cooks.; One, in a kitchen,  cooks.", "c092 1.5 2.0", 24.8]
                for i in range(count)
            ),
        )


def read_annotations(
    dataset: str, folder: Path, videos: Path | str = "", protocol: str = ""
) -> Annotations:
    return inputs.read_annotations(
        DatasetLocation(dataset, annotations=str(folder), videos=str(videos), protocol=protocol)
    )


def clips_by_id(dataset: str, folder: Path, videos: Path | str = "") -> dict[str, Clip]:
    return {clip.clip_id: clip for clip in read_annotations(dataset, folder, videos).clips}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def assert_rejected(
    dataset: str,
    folder: Path,
    message: str,
    protocol: str = "",
    error: type[Exception] = DataError,
) -> None:
    """Reading raises a one-line error that names the folder and matches `message`."""
    with pytest.raises(error, match=message) as caught:
        read_annotations(dataset, folder, protocol=protocol)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)

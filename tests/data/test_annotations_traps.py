"""Irregularities of the published annotation files, and variants of them in circulation."""

import json
from pathlib import Path

import pytest

from data import inputs
from data.errors import DataError, UsageError
from data.records import DatasetLocation
from tests.helpers import published
from tests.helpers.published import assert_rejected, clips_by_id, read_annotations, touch


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_msrvtt_other_names_and_schema(tmp_path):
    published.msrvtt(tmp_path)
    before = read_annotations("msrvtt", tmp_path)
    assert before.clips[0].captions == ("video0 caption 0", "video0 caption 1")
    assert before.clips[-1].captions == ("video7 query",)
    (tmp_path / "MSRVTT_train.9k.csv").rename(tmp_path / "MSRVTT_train.9000.csv")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").rename(tmp_path / "msrvtt_test.1000.csv")
    assert read_annotations("msrvtt", tmp_path) == before

    def coco(content):
        rows = [{"image_id": s["video_id"], "caption": s["caption"]} for s in content["sentences"]]
        return {"images": [], "annotations": rows}

    rewrite(tmp_path / "MSRVTT_data.json", coco)
    (tmp_path / "MSRVTT_data.json").rename(tmp_path / "MSR_VTT.json")
    assert read_annotations("msrvtt", tmp_path) == before
    assert_rejected(
        "msrvtt", tmp_path, "MSR_VTT.json: its videos have no 'split'.*MSRVTT_data", "full"
    )


def test_msrvtt_captions_in_two_files(tmp_path):
    published.msrvtt(tmp_path)
    before, full = (
        read_annotations("msrvtt", tmp_path),
        read_annotations("msrvtt", tmp_path, protocol="full"),
    )
    content = json.loads((tmp_path / "MSRVTT_data.json").read_text())
    (tmp_path / "MSRVTT_data.json").unlink()
    tests = {v["video_id"] for v in content["videos"] if v["split"] == "test"}
    for name, is_test in (("train_val", False), ("test", True)):
        part = {
            key: [row for row in content[key] if (row["video_id"] in tests) == is_test]
            for key in ("videos", "sentences")
        }
        (tmp_path / f"{name}_videodatainfo.json").write_text(json.dumps(part))
    assert read_annotations("msrvtt", tmp_path) == before
    assert read_annotations("msrvtt", tmp_path, protocol="full") == full


def test_msrvtt_errors(tmp_path):
    published.msrvtt(tmp_path)
    with pytest.raises(UsageError, match="'1k' is unknown; msrvtt has 9k, 7k, full"):
        read_annotations("msrvtt", tmp_path, protocol="1k")
    published.table(tmp_path / "MSRVTT_train.9k.csv", ["video_id"], ["video0"], ["video7"])
    assert_rejected("msrvtt", tmp_path, "'video7' is in test and in train")
    (tmp_path / "MSRVTT_train.9k.csv").unlink()
    assert_rejected(
        "msrvtt", tmp_path, r"none of MSRVTT_train.9k.csv, MSRVTT_train.9000.csv, .* exists"
    )


def test_didemo_paragraphs_and_names(tmp_path):
    published.didemo(tmp_path, 5)
    files = ["10@N0_0_a0.mov", "11@N0_1_a1.avi.mp4", "12@N0_2_a2.mkv", "14@N0_4_a4."]
    touch(tmp_path / "videos", *files, "sub/15@N0_5_a5.mov", "10@N0_0_a0.json")
    by_id = clips_by_id("didemo", tmp_path, tmp_path / "videos")
    assert {v: Path(clip.path).name for v, clip in by_id.items()} == {
        "10@N0_0_a0": files[0],
        "11@N0_1_a1": files[1],
        "12@N0_2_a2": files[2],
        "13@N0_3_a3": "",
        "14@N0_4_a4": files[3],
        "15@N0_5_a5": "15@N0_5_a5.mov",
        "16@N0_6_a6": "",
    }
    assert by_id["14@N0_4_a4"].captions == ("part 0 part 1 part 2",)
    before = read_annotations("didemo", tmp_path, tmp_path / "videos")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_list.txt").unlink()
    assert read_annotations("didemo", tmp_path, tmp_path / "videos") == before


def test_didemo_listed_ids_without_captions_and_unlisted_ids(tmp_path):
    published.didemo(tmp_path)
    published.write(tmp_path / "train_list.txt", "\ufeffx.mov \r\n\r\n 10@N0_0_a0.mov")
    result = read_annotations("didemo", tmp_path)
    assert result.uncaptioned == {"train": ["x"], "val": [], "test": []}
    assert result.unlisted == ["11@N0_1_a1"]


def test_activitynet_files_with_and_without_v_prefix(tmp_path):
    published.activitynet(tmp_path, {"train": (3, 4), "test": (1, 1)})
    touch(tmp_path / "videos", "v_train000000.mp4", "train000001.webm")
    result = read_annotations("activitynet", tmp_path, tmp_path / "videos")
    names = [Path(clip.path).name for clip in result.clips]
    assert names == ["v_train000000.mp4", "train000001.webm", "", ""]
    assert result.clips[0].captions == ("A b. C d.",)
    assert result.uncaptioned == {"train": ["v_train000003"], "test": []}
    touch(tmp_path / "videos", "more/train000000.mkv")
    with pytest.raises(
        DataError, match=r"'v_train000000' matches both .*v_train000000\.mp4 and .*mkv"
    ):
        read_annotations("activitynet", tmp_path, tmp_path / "videos")


def test_lsmdc_film_folders_and_quotes(tmp_path):
    published.lsmdc(tmp_path)
    film = "0001_American_Beauty"
    no_extension, name = (f"{film}_00.{i:06d}.926-00.{i:06d}.129" for i in range(2))
    touch(tmp_path / "videos" / film, f"{name}.avi", f"{name}.txt", no_extension)
    by_id = clips_by_id("lsmdc", tmp_path, tmp_path / "videos")
    assert by_id[name].path.endswith(f"0001_American_Beauty/{name}.avi")
    assert by_id[name].captions == ('"SOMEONE" walks, 1 steps.',)
    assert by_id[no_extension].path.endswith(f"{film}/{no_extension}")
    assert sum(not clip.path for clip in by_id.values()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\t1\t2\t3\t4", "line 1 has 5 fields .* blind .*challenge_1000_publictect"),
        ("a,1,2,3,4,text", "line 1 has 1 fields; it needs 6"),
    ],
)
def test_lsmdc_lines_without_sentences(tmp_path, line, message):
    published.lsmdc(tmp_path)
    published.write(tmp_path / "LSMDC16_challenge_1000_publictect.csv", line)
    assert_rejected("lsmdc", tmp_path, message)
    (tmp_path / "LSMDC16_annos_training.csv").unlink()
    assert_rejected("lsmdc", tmp_path, "LSMDC16_annos_training.csv does not exist; add it")


def test_lsmdc_sentences_that_are_empty_or_contain_a_tab(tmp_path):
    published.lsmdc(tmp_path)
    published.write(
        tmp_path / "LSMDC16_annos_val.csv", "a\t\t\t\t\t \r\nb\t\t\t\t\tone\ttwo\u2028 three"
    )
    result = read_annotations("lsmdc", tmp_path)
    assert result.uncaptioned["val"] == ["a"]
    assert [c.captions for c in result.clips if c.split == "val"] == [("one two three",)]


def test_vatex_files_of_segments_and_of_full_videos(tmp_path):
    published.vatex(tmp_path)
    touch(
        tmp_path / "videos", "train000000_000012_000022.mp4", "train000001.mp4", "train000000.mp4"
    )
    by_id = clips_by_id("vatex", tmp_path, tmp_path / "videos")
    cut, full = by_id["train000000_000012_000022"], by_id["train000001_000012_000022"]
    assert Path(cut.path).name == "train000000_000012_000022.mp4"
    assert (cut.start, cut.end) == (None, None)
    assert (Path(full.path).name, full.start, full.end) == ("train000001.mp4", 12.0, 22.0)
    assert [clip.start for clip in by_id.values() if not clip.path] == [None, None]
    assert cut.captions[:2] == ("A cap 0.", "A cap 1.") and len(cut.captions) == 10


def test_vatex_requires_a_choice_between_test_lists(tmp_path):
    published.vatex(tmp_path, test=2)
    default = read_annotations("vatex", tmp_path)
    published.write(tmp_path / "test1k5_list.txt", "test_000001_000012_000022\n")
    message = r"test1k5_list\.txt, test_list\.txt; choose one with --config\.data\.protocol"
    assert_rejected("vatex", tmp_path, message, error=UsageError)
    assert read_annotations("vatex", tmp_path, protocol="test_list") == default
    other = read_annotations("vatex", tmp_path, protocol="test1k5_list")
    assert [c.clip_id for c in other.clips if c.split == "test"] == ["test_000001_000012_000022"]
    assert other.unlisted == ["test_000000_000012_000022"]
    assert_rejected("vatex", tmp_path, "no test list test3.txt", "test3", UsageError)


def test_vatex_captions_in_one_or_several_files(tmp_path):
    published.vatex(tmp_path)
    before = read_annotations("vatex", tmp_path)
    captions = {clip.clip_id: list(clip.captions) for clip in before.clips}
    for path in tmp_path.glob("vatex_*.json"):
        path.unlink()
    (tmp_path / "ref_captions.json").write_text(json.dumps(captions))
    assert read_annotations("vatex", tmp_path) == before
    for name, text in (("a", "x"), ("b", "y")):
        rows = [{"videoID": "train000000_000012_000022", "enCap": [text]}]
        (tmp_path / f"vatex_{name}.json").write_text(json.dumps(rows))
    assert_rejected(
        "vatex", tmp_path, "vatex_b.json: 'train000000_000012_000022' has other captions"
    )


def test_charades_descriptions_are_captions(tmp_path):
    published.charades(tmp_path)
    (clip, _) = [
        clip for clip in read_annotations("charades", tmp_path).clips if clip.split == "train"
    ]
    assert clip.captions == ("A person cooks.", "One, in a kitchen, cooks.")
    text = (tmp_path / "Charades_v1_test.csv").read_text()
    cut = text.replace("A person cooks.; One, in a kitchen,  cooks.", " ; ")
    (tmp_path / "Charades_v1_test.csv").write_text(cut)
    assert read_annotations("charades", tmp_path).uncaptioned == {"train": [], "test": ["te000"]}


def change_msrvtt(content, key, name, value):
    content[key][1][name] = value
    return content


NULLS = {
    "msrvtt": [
        ("MSRVTT_data.json", lambda x: change_msrvtt(x, "sentences", "caption", None),
         "'caption' of item 2 of 'sentences' \\('video0'\\) is null"),
        ("MSRVTT_data.json", lambda x: change_msrvtt(x, "sentences", "caption", float("nan")),
         "'caption' of item 2 of 'sentences' \\('video0'\\) is NaN"),
        ("MSRVTT_data.json", lambda x: change_msrvtt(x, "sentences", "video_id", 7),
         "'video_id' of item 2 of 'sentences' is 7"),
        ("MSRVTT_data.json", lambda x: x | {"sentences": None}, "'sentences' of it is null"),
    ],
    "activitynet": [
        ("train.json", lambda x: x | {"v_a": {"sentences": ["b", None]}},
         "sentence 2 of 'v_a' is null"),
        ("train.json", lambda x: x | {"v_a": {"sentences": None}}, "'sentences' of 'v_a' is null"),
        ("train.json", lambda x: x | {"v_a": {}}, "'v_a' has no 'sentences'"),
        ("train.json", lambda x: x | {"v_a": None}, "'v_a' is null"),
        ("train_ids.json", lambda x: [*x, None], "id 2 is null"),
    ],
    "didemo": [
        ("val_data.json", lambda x: [*x, x[0] | {"description": None}],
         "'description' of item 4 \\('.*'\\) is null"),
        ("val_data.json", lambda x: [*x, x[0] | {"video": 3.5}], "'video' of item 4 is 3.5"),
        ("val_data.json", lambda x: [*x, None], "item 4 is null"),
    ],
    "msvd": [
        ("captions.json", lambda x: x | {"a": ["b", None]}, "caption 2 of 'a' is null"),
        ("captions.json", lambda x: x | {"a": None}, "the value of 'a' is null"),
        ("captions.json", lambda x: x | {"a": [["b", 3]]}, "caption 1, word 2 of 'a' is 3"),
        ("captions.json", lambda x: x | {"a": [{"b": 1}]}, "caption 1 of 'a' is an object"),
    ],
    "vatex": [
        ("vatex_training_v1.0.json", lambda x: [*x, {"videoID": "a", "enCap": ["b", None]}],
         "caption 2 of 'a' is null"),
        ("vatex_training_v1.0.json", lambda x: [*x, {"videoID": "a", "enCap": None}],
         "the value of 'a' is null"),
        ("vatex_training_v1.0.json", lambda x: [*x, {"videoID": None, "enCap": ["b"]}],
         "'videoID' of item 3 is null"),
    ],
}  # fmt: skip
NULL_CASES = [(dataset, *case) for dataset, cases in NULLS.items() for case in cases]


@pytest.mark.parametrize(("dataset", "file", "change", "message"), NULL_CASES)
def test_values_that_are_no_texts_are_named_with_their_rows(
    tmp_path, dataset, file, change, message
):
    counts = {"activitynet": {"train": (1, 1), "test": (1, 1)}}
    counts["msvd"] = {"train": (1, 1), "val": (1, 1), "test": (1, 1)}
    getattr(published, dataset)(tmp_path, *(counts[dataset],) if dataset in counts else ())
    if dataset == "msvd":
        (tmp_path / "raw-captions.pkl").unlink()
        (tmp_path / file).write_text("{}")
    rewrite(tmp_path / file, change)
    assert_rejected(dataset, tmp_path, f"{file}: is not .*: {message}$")


def test_names_with_accents_and_other_case(tmp_path):
    counts = {"train": (1, 1), "val": (1, 1), "test": (1, 1)}
    published.msvd(tmp_path, counts)
    (tmp_path / "raw-captions.pkl").unlink()
    ids = {"train": "caf\u00e9", "val": "V_1", "test": "none"}
    (tmp_path / "captions.json").write_text(json.dumps({name: ["x"] for name in ids.values()}))
    for split, name in ids.items():
        published.write(tmp_path / f"{split}_list.txt", name)
    touch(tmp_path / "videos", "cafe\u0301.mp4", "v_1.mp4")
    location = DatasetLocation("msvd", annotations=str(tmp_path), videos=str(tmp_path / "videos"))
    with pytest.raises(DataError, match=r"2 of 3 .*: V_1 \(there is 'v_1.mp4'\), none; add"):
        inputs.read_dataset(location)

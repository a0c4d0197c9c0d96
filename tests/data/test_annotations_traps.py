"""What the published files hold that is unlike the rest, and the other copies that go about."""

import json
from pathlib import Path

import pytest

from data.errors import DataError, UsageError
from tests.helpers import published
from tests.helpers.published import clips, found, refused, touch


def rewrite(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_msrvtt_other_names_and_schema(tmp_path):
    published.msrvtt(tmp_path)
    before = found("msrvtt", tmp_path)
    assert before.clips[0].captions == ("video0 caption 0", "video0 caption 1")
    assert before.clips[-1].captions == ("video7 query",)
    (tmp_path / "MSRVTT_train.9k.csv").rename(tmp_path / "MSRVTT_train.9000.csv")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").rename(tmp_path / "msrvtt_test.1000.csv")
    assert found("msrvtt", tmp_path) == before

    def coco(content):
        rows = [{"image_id": s["video_id"], "caption": s["caption"]} for s in content["sentences"]]
        return {"images": [], "annotations": rows}

    rewrite(tmp_path / "MSRVTT_data.json", coco)
    (tmp_path / "MSRVTT_data.json").rename(tmp_path / "MSR_VTT.json")
    assert found("msrvtt", tmp_path) == before
    refused("msrvtt", tmp_path, "MSR_VTT.json: its videos have no 'split'.*MSRVTT_data", "full")


def test_msrvtt_as_two_files_of_captions(tmp_path):
    published.msrvtt(tmp_path)
    before, full = found("msrvtt", tmp_path), found("msrvtt", tmp_path, "", "full")
    content = json.loads((tmp_path / "MSRVTT_data.json").read_text())
    (tmp_path / "MSRVTT_data.json").unlink()
    tests = {v["video_id"] for v in content["videos"] if v["split"] == "test"}
    for name, mine in (("train_val", False), ("test", True)):
        part = {
            key: [row for row in content[key] if (row["video_id"] in tests) == mine]
            for key in ("videos", "sentences")
        }
        (tmp_path / f"{name}_videodatainfo.json").write_text(json.dumps(part))
    assert found("msrvtt", tmp_path) == before
    assert found("msrvtt", tmp_path, "", "full") == full


def test_msrvtt_faults(tmp_path):
    published.msrvtt(tmp_path)
    with pytest.raises(UsageError, match="'1k' is unknown; msrvtt has 9k, 7k, full"):
        found("msrvtt", tmp_path, "", "1k")
    published.table(tmp_path / "MSRVTT_train.9k.csv", ["video_id"], ["video0"], ["video7"])
    refused("msrvtt", tmp_path, "'video7' is in test and in train")
    (tmp_path / "MSRVTT_train.9k.csv").unlink()
    refused("msrvtt", tmp_path, r"none of MSRVTT_train.9k.csv, MSRVTT_train.9000.csv")


def test_didemo_paragraphs_and_names(tmp_path):
    published.didemo(tmp_path, 5)
    kept = ["10@N0_0_a0.mov", "11@N0_1_a1.avi.mp4", "12@N0_2_a2.mkv", "14@N0_4_a4."]
    touch(tmp_path / "videos", *kept, "sub/15@N0_5_a5.mov", "10@N0_0_a0.json")
    by_id = clips("didemo", tmp_path, tmp_path / "videos")
    assert {v: Path(clip.path).name for v, clip in by_id.items()} == {
        "10@N0_0_a0": kept[0],
        "11@N0_1_a1": kept[1],
        "12@N0_2_a2": kept[2],
        "13@N0_3_a3": "",
        "14@N0_4_a4": kept[3],
        "15@N0_5_a5": "15@N0_5_a5.mov",
        "16@N0_6_a6": "",
    }
    assert by_id["14@N0_4_a4"].captions == ("part 0 part 1 part 2",)
    before = found("didemo", tmp_path, tmp_path / "videos")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}_list.txt").unlink()
    assert found("didemo", tmp_path, tmp_path / "videos") == before


def test_didemo_listed_ids_without_captions_and_the_reverse(tmp_path):
    published.didemo(tmp_path)
    published.write(tmp_path / "train_list.txt", "\ufeffx.mov \r\n\r\n 10@N0_0_a0.mov")
    result = found("didemo", tmp_path)
    assert result.uncaptioned == {"train": ["x"], "val": [], "test": []}
    assert result.unlisted == ["11@N0_1_a1"]


def test_activitynet_ids_with_and_without_v(tmp_path):
    published.activitynet(tmp_path, {"train": (3, 4), "test": (1, 1)})
    touch(tmp_path / "videos", "v_train000000.mp4", "train000001.webm")
    result = found("activitynet", tmp_path, tmp_path / "videos")
    assert [Path(clip.path).name for clip in result.clips] == [
        *("v_train000000.mp4", "train000001.webm", "", ""),
    ]
    assert result.clips[0].captions == ("A b. C d.",)
    assert result.uncaptioned == {"train": ["v_train000003"], "test": []}
    touch(tmp_path / "videos", "more/train000000.mkv")
    with pytest.raises(
        DataError, match=r"'v_train000000' fits both .*v_train000000\.mp4 and .*mkv"
    ):
        found("activitynet", tmp_path, tmp_path / "videos")


def test_lsmdc_has_folders_of_films_and_quotes(tmp_path):
    published.lsmdc(tmp_path)
    film = "0001_American_Beauty"
    bare, name = (f"{film}_00.{i:06d}.926-00.{i:06d}.129" for i in range(2))
    touch(tmp_path / "videos" / film, f"{name}.avi", f"{name}.txt", bare)
    by_id = clips("lsmdc", tmp_path, tmp_path / "videos")
    assert by_id[name].path.endswith(f"0001_American_Beauty/{name}.avi")
    assert by_id[name].captions == ('"SOMEONE" walks, 1 steps.',)
    assert by_id[bare].path.endswith(f"{film}/{bare}")
    assert sum(not clip.path for clip in by_id.values()) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a\t1\t2\t3\t4", "line 1 has 5 fields .* blind .*challenge_1000_publictect"),
        ("a,1,2,3,4,text", "line 1 has 1 fields; it needs 6"),
    ],
)
def test_lsmdc_without_sentences(tmp_path, line, says):
    published.lsmdc(tmp_path)
    published.write(tmp_path / "LSMDC16_challenge_1000_publictect.csv", line)
    refused("lsmdc", tmp_path, says)
    (tmp_path / "LSMDC16_annos_training.csv").unlink()
    refused("lsmdc", tmp_path, "LSMDC16_annos_training.csv is not there; put it there")


def test_lsmdc_sentences_that_are_empty_or_hold_a_tab(tmp_path):
    published.lsmdc(tmp_path)
    published.write(
        tmp_path / "LSMDC16_annos_val.csv", "a\t\t\t\t\t \r\nb\t\t\t\t\tone\ttwo\u2028 three"
    )
    result = found("lsmdc", tmp_path)
    assert result.uncaptioned["val"] == ["a"]
    assert [c.captions for c in result.clips if c.split == "val"] == [("one two three",)]


def test_vatex_files_are_trimmed_or_not(tmp_path):
    published.vatex(tmp_path)
    touch(
        tmp_path / "videos", "train000000_000012_000022.mp4", "train000001.mp4", "train000000.mp4"
    )
    by_id = clips("vatex", tmp_path, tmp_path / "videos")
    cut, whole = by_id["train000000_000012_000022"], by_id["train000001_000012_000022"]
    assert (Path(cut.path).name, cut.start, cut.end) == (
        "train000000_000012_000022.mp4",
        None,
        None,
    )
    assert (Path(whole.path).name, whole.start, whole.end) == ("train000001.mp4", 12.0, 22.0)
    assert [clip.start for clip in by_id.values() if not clip.path] == [None, None]
    assert cut.captions[:2] == ("A cap 0.", "A cap 1.") and len(cut.captions) == 10


def test_vatex_asks_which_test_list(tmp_path):
    published.vatex(tmp_path, test=2)
    both = found("vatex", tmp_path)
    published.write(tmp_path / "test1k5_list.txt", "test_000001_000012_000022\n")
    says = r"test1k5_list\.txt, test_list\.txt; say which one with --config\.data\.protocol"
    refused("vatex", tmp_path, says, kind=UsageError)
    assert found("vatex", tmp_path, "", "test_list") == both
    other = found("vatex", tmp_path, "", "test1k5_list")
    assert [c.clip_id for c in other.clips if c.split == "test"] == ["test_000001_000012_000022"]
    assert other.unlisted == ["test_000000_000012_000022"]
    refused("vatex", tmp_path, "no test list test3.txt", "test3", kind=UsageError)


def test_vatex_captions_of_all_files(tmp_path):
    published.vatex(tmp_path)
    before = found("vatex", tmp_path)
    captions = {clip.clip_id: list(clip.captions) for clip in before.clips}
    for path in tmp_path.glob("vatex_*.json"):
        path.unlink()
    (tmp_path / "ref_captions.json").write_text(json.dumps(captions))
    assert found("vatex", tmp_path) == before
    for name, text in (("a", "x"), ("b", "y")):
        rows = [{"videoID": "train000000_000012_000022", "enCap": [text]}]
        (tmp_path / f"vatex_{name}.json").write_text(json.dumps(rows))
    refused("vatex", tmp_path, "vatex_b.json: 'train000000_000012_000022' has other captions")


def test_charades_descriptions_are_captions(tmp_path):
    published.charades(tmp_path)
    (clip, _) = [clip for clip in found("charades", tmp_path).clips if clip.split == "train"]
    assert clip.captions == ("A person cooks.", "One, in a kitchen, cooks.")
    text = (tmp_path / "Charades_v1_test.csv").read_text()
    cut = text.replace("A person cooks.; One, in a kitchen,  cooks.", " ; ")
    (tmp_path / "Charades_v1_test.csv").write_text(cut)
    assert found("charades", tmp_path).uncaptioned == {"train": [], "test": ["te000"]}

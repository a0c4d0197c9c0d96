"""The table of a sweep, from folders that look like those of runs."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from data.errors import UsageError
from data.storage import files as storage
from data.storage.path import Path
from hvp_jax.cli.verbs import report
from hvp_jax.monitoring.json_files import to_json_types
from hvp_jax.sweeps.manifest import run_folder
from hvp_jax.sweeps.results import summarize
from tests.helpers import sweep_results
from tests.helpers.bucket import emulated_bucket

SKILLS = {"three taps": 2.0, "same": 2.0, "one_tap & 50%": 2.8}
FIGURES = ["R@1", "R@5", "R@10", "MdR", "MnR"]


@pytest.fixture
def folder(tmp_path):
    sweep_results.write_sweep(tmp_path, SKILLS)
    return tmp_path


def by_name(folder) -> dict[str, dict]:
    """The settings of sweep.json by name."""
    summarize(folder)
    return {row["name"]: row for row in json.loads((folder / "sweep.json").read_text())["settings"]}


def of_runs(folder, setting: str, direction: str, name: str) -> list[float]:
    """A figure of a setting's runs, from their eval.json."""
    files = [run_folder(folder, setting, seed) / "eval.json" for seed in range(3)]
    return [json.loads(file.read_text())[direction][name] for file in files]


def test_a_sweep_in_a_bucket_has_the_table_of_a_local_one(folder):
    summarize(folder)
    with emulated_bucket():
        there = Path("gs://bucket/sweep")
        for path in (folder / "manifest.json", *folder.glob("runs/*/*/*")):
            storage.upload(path, there / path.relative_to(folder))
        summarize(there)
        for name in ("sweep.json", "table.md", "table.csv", "table.tex", "table.png"):
            assert storage.read_bytes(there / name) == (folder / name).read_bytes()


def test_the_means_and_differences_are_those_of_the_runs(folder):
    rows = by_name(folder)
    assert list(rows) == list(SKILLS)
    for setting, row in rows.items():
        assert row["seeds"] == [0, 1, 2] and row["failed"] == []
        for direction, key in (
            ("text_to_video", "difference"),
            ("video_to_text", "difference_video_to_text"),
        ):
            assert list(row[direction]) == FIGURES
            for name in FIGURES:
                values = of_runs(folder, setting, direction, name)
                expected = {"mean": np.mean(values), "std": np.std(values, ddof=1)}
                assert row[direction][name] == pytest.approx(expected)
                if setting != "three taps":
                    base = np.mean(of_runs(folder, "three taps", direction, name))
                    found = row[key][name]
                    assert found["mean"] == pytest.approx(np.mean(values) - base)
                    assert found["low"] <= found["mean"] <= found["high"]
    assert rows["three taps"]["difference"] == {}
    assert rows["same"]["difference"]["R@1"]["significant"] is False
    better = rows["one_tap & 50%"]
    assert better["difference"]["R@1"]["significant"] is True
    assert better["difference"]["R@1"]["low"] > 0 > better["difference"]["MnR"]["high"]
    assert better["difference_rsum"]["significant"] is True
    assert better["cost"]["step_ms"] == 2101 and better["cost"]["peak_memory_mib"] == 2514


def test_the_table_is_written_in_every_form(folder):
    text = summarize(folder).text
    assert (folder / "table.md").read_text() == text + "\n"
    assert len(re.findall(r"^\| three taps \(base\) \|", text, re.MULTILINE)) == 2
    assert re.search(
        r"^\| one_tap & 50% \| \+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\] \*", text, re.MULTILINE
    )
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["setting"] for row in rows] == list(SKILLS)
    better = by_name(folder)["one_tap & 50%"]
    assert float(rows[2]["T2V R@1"]) == better["text_to_video"]["R@1"]["mean"]
    assert (
        float(rows[2]["V2T MnR difference low"]) == better["difference_video_to_text"]["MnR"]["low"]
    )
    assert rows[2]["T2V R@1 difference significant"] == "True"
    assert float(rows[2]["parameters"]) == 1_500_000
    latex = (folder / "table.tex").read_text()
    assert r"one\_tap \& 50\%" in latex and latex.count(r"\toprule") == 3
    assert all(line.endswith(r"\\") for line in latex.splitlines() if " & " in line)
    image = np.asarray(Image.open(folder / "table.png").convert("RGB")).astype(int)
    orange = abs(image - (0xD9, 0x82, 0x2B)).max(axis=-1) <= 8
    blue = abs(image - (0x2F, 0x5F, 0xD0)).max(axis=-1) <= 8
    assert orange.any() and blue.any()
    # Sorted: the better setting is above, and right of the one that is like the base.
    left = slice(0, image.shape[1] // 2)
    assert np.nonzero(orange[:, left])[0].max() < np.nonzero(blue[:, left])[0].min()
    assert np.nonzero(orange[:, left])[1].min() > np.nonzero(blue[:, left])[1].min()


def test_runs_without_a_result_are_named_and_the_others_stand(folder):
    (run_folder(folder, "same", 0) / "error.txt").write_text("DataError: clip\n7 is broken\n")
    (run_folder(folder, "same", 1) / "cost.json").unlink()
    (run_folder(folder, "one_tap & 50%", 1) / "eval.json").write_text("{")
    (run_folder(folder, "one_tap & 50%", 2) / "ranks.npz").write_bytes(b"PK")
    for path in run_folder(folder, "three taps", 2).iterdir():
        path.unlink()
    run_folder(folder, "three taps", 2).rmdir()
    result = summarize(folder)
    reasons = {(row["setting"], row["seed"]): row["reason"] for row in result.failed}
    assert reasons[("same", 0)] == "failed: DataError: clip 7 is broken"
    assert reasons[("same", 1)] == "not finished"
    assert "eval.json is damaged, run `eval` again" in reasons[("one_tap & 50%", 1)]
    assert "ranks.npz is damaged" in reasons[("one_tap & 50%", 2)]
    assert reasons[("three taps", 2)] == "not started" and len(reasons) == 5
    base, same, better = result.settings
    assert base.seeds == [0, 1] and same.seeds == [2] and better.seeds == [0]
    assert [row["seed"] for row in same.failed] == [0, 1]
    assert same.difference == {} and "no seed has a result here and in the base" in same.note
    assert better.difference["R@1"]["low"] is None and not better.difference["R@1"]["significant"]
    assert better.note.startswith("no interval: one seed")
    assert better.text_to_video["R@1"]["std"] is None
    assert "- same, seed 0: failed: DataError: clip 7 is broken" in result.text
    assert json.loads((folder / "sweep.json").read_text())["failed"] == result.failed


def test_a_setting_without_any_run_leaves_the_others_whole(folder):
    undisturbed = by_name(folder)
    for seed in range(3):
        (run_folder(folder, "same", seed) / "error.txt").write_text("out of memory")
    rows = by_name(folder)
    assert rows["same"]["text_to_video"] == {} and rows["same"]["seeds"] == []
    assert rows["three taps"] == undisturbed["three taps"]
    same, before = rows["one_tap & 50%"], undisturbed["one_tap & 50%"]
    assert same["difference"]["R@1"] == before["difference"]["R@1"]
    for seed in range(3):
        (run_folder(folder, "three taps", seed) / "error.txt").write_text("out of memory")
    assert by_name(folder)["one_tap & 50%"]["difference"] == {}


def write_setting(folder, setting: str, **options) -> None:
    for seed in range(3):
        sweep_results.write_run(
            run_folder(folder, setting, seed), skill=2.8, seed=50 + seed, **options
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"data": sweep_results.clips("val")}, "not compared: split is val, not test"),
        (
            {"data": sweep_results.clips(word="other")},
            "not compared: the clips or captions of split test",
        ),
    ],
)
def test_rows_of_other_data_are_not_compared(folder, options, why):
    write_setting(folder, "one_tap & 50%", **options)
    row = by_name(folder)["one_tap & 50%"]
    assert row["note"].startswith(why) and row["difference"] == {}
    assert row["text_to_video"]["R@1"]["mean"] > 0
    assert f"- one_tap & 50%: {why}" in (folder / "table.md").read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"scoring": {"word_weights": "paired", "contains_the_answer": True, "warning": "w"}},
            "contains_the_answer is True, not None, word_weights is paired, not query",
        ),
        ({"chosen_on": "test"}, "checkpoint chosen on is test, not val"),
    ],
)
def test_rows_of_another_scoring_get_no_interval(folder, options, why):
    write_setting(folder, "one_tap & 50%", **options)
    row = by_name(folder)["one_tap & 50%"]
    assert row["note"] == f"another scoring than the base's, no interval: {why}"
    found = row["difference"]["R@1"]
    assert found["mean"] > 0 and found["low"] is None and found["significant"] is False


def test_a_run_that_is_evaluated_otherwise_than_its_setting_is_left_out(folder):
    path = run_folder(folder, "same", 1)
    sweep_results.write_run(path, skill=2.0, seed=1, data=sweep_results.clips("val"))
    row = by_name(folder)["same"]
    assert row["seeds"] == [0, 2] and row["note"] == "compared over seeds 0, 2"
    assert row["failed"][0]["reason"].startswith("evaluated otherwise than seed 0: split is val")


def test_marks_are_corrected_for_the_number_of_settings(tmp_path):
    sweep_results.write_sweep(tmp_path / "few", {"base": 2.0, "other": 2.25})
    sweep_results.write_sweep(
        tmp_path / "many", {"base": 2.0, "other": 2.25, **dict.fromkeys("abcdefgh", 2.0)}
    )
    few, many = (by_name(tmp_path / name)["other"]["difference"] for name in ("few", "many"))
    assert few["MnR"]["high"] < 0 and few == {
        k: v | {"significant": few[k]["significant"]} for k, v in many.items()
    }
    assert few["MnR"]["significant"] and not many["MnR"]["significant"]


def test_report_of_a_sweep_a_run_and_neither(folder, tmp_path):
    assert report.run(folder).text == summarize(folder).text
    workdir = Path(run_folder(folder, "same", 0))
    run = report.run(workdir)
    fields = to_json_types(run)
    assert fields["step"] == 10 and fields["split"] == "test"
    assert fields["text_to_video"]["R@1"] == of_runs(folder, "same", "text_to_video", "R@1")[0]
    assert "step_ms: 1100.0" in run.text and "text to video" in run.text
    (workdir / "eval.json").unlink()
    text = report.run(workdir).text
    assert text.startswith("step 10, stopped\nloss 1.0000\n\nparameters")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds neither a sweep nor a run"):
        report.run(Path(tmp_path / "empty"))

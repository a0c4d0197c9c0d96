"""Bad data is an error of one line of `train`; `bench` needs no data."""

import csv
import json
import os
import re

import pytest

from tests.helpers.command import ROOT, run_command
from tests.helpers.train_runs import TINY


def broken_folder(tmp_path, clips, rows_of_csv, files=()):
    root = tmp_path / "broken"
    (root / "videos").mkdir(parents=True)
    for path in sorted((clips / "videos").iterdir())[:4]:
        os.symlink(path, root / "videos" / path.name)
    for name, content in files:
        (root / "videos" / name).write_bytes(content)
    with open(root / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows_of_csv)
    return root


HEADER = ["video_id", "caption", "split"]
GOOD = [[f"clip{i:04d}", f"number {i}", "train" if i < 2 else "test"] for i in range(4)]
TEXT = [["text", f"no video {i}", "train"] for i in range(8)]  # enough for a batch


@pytest.mark.parametrize(
    "table, files, status, message",
    [
        ([["video_id", "text"], ["clip0000", "x"]], (), 1, "caption"),
        ([HEADER, *GOOD, ["nobody", "a clip that is not there", "train"]], (), 1, "nobody"),
        ([HEADER, *GOOD, *TEXT], [("text.mp4", b"hello")], 1, "text.mp4"),
        ([HEADER, *GOOD], (), 1, "batch"),
    ],
    ids=["column", "caption", "text", "few"],
)
def test_bad_data_is_an_error_of_one_line_and_nothing_is_written(
    tmp_path, clips, run_cli, table, files, status, message
):
    root, workdir = broken_folder(tmp_path, clips, table, files), tmp_path / "run"
    code, _, err = run_cli("train", *TINY, f"--config.data.root={root}", f"--workdir={workdir}")
    lines = [line for line in re.split(r"[\r\n]+", err) if line.startswith("error: ")]
    assert code == status and len(lines) == 1 and message in lines[0]
    assert "Traceback" not in err and not workdir.exists()


@pytest.mark.parametrize("kind, status", [("missing", 2), ("empty", 1)])
def test_a_missing_or_empty_folder_is_an_error_of_one_line(tmp_path, run_cli, kind, status):
    root = tmp_path / kind
    if kind == "empty":
        root.mkdir()
    code, _, err = run_cli("train", *TINY, f"--config.data.root={root}", f"--workdir={tmp_path}/w")
    assert code == status and str(root) in err and "Traceback" not in err
    assert not (tmp_path / "w").exists()


def test_bench_compares_the_step_with_a_matrix_product(run_cli):
    # With a smaller product than the usual one.
    small = "import sys; from hvp_jax.bench import timing; from hvp_jax.cli.main import main; "
    small += "timing.PRODUCT = 256; sys.exit(main())"
    status, out, err = run_command("-c", small, "bench", *TINY, "--json", PYTHONPATH=str(ROOT))
    assert status == 0, err
    result = json.loads(out)
    assert result["repeats"] >= 5 and len(result["ms_all"]) == result["repeats"]
    assert result["share_of_matmul"] > 0 and result["compile_s"] > 0
    assert result["GFLOP"] / (result["ms"] / 1000) == pytest.approx(result["GFLOP/s"])

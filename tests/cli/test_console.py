"""What is printed of a result or an error: text on stdout, or one JSON object."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hvp_jax.cli import main
from hvp_jax.cli.verbs import doctor, port, prepare
from hvp_jax.monitoring import json_files
from tests.helpers.command import ROOT, run_command

FOLDER = f"--config={ROOT / 'configs' / 'folder.py'}"
TRAIN = ("train", FOLDER, "--workdir=never-made")


def test_without_json_a_result_is_readable(fake, capfd):
    fake(lambda **_: {"text": "a table", "ok": True})
    main.main(["parity", "--golden=g"])
    assert capfd.readouterr().out == "a table\n"
    fake(lambda **_: {"clips": 3, "error": 0.5, "recall": {"R@1": 40.0}})
    main.main(["parity", "--golden=g"])
    assert capfd.readouterr().out == "clips: 3\nerror: 0.5\nrecall:\n  R@1: 40.0\n"


@dataclasses.dataclass
class Table:
    rate: float = dataclasses.field(metadata={"json": "steps/s"})
    rows: list = dataclasses.field(metadata={"json": None})
    ok: bool = False

    @property
    def text(self) -> str:
        return f"{len(self.rows)} rows"


def test_a_dataclass_is_a_result(fake, capfd):
    fake(lambda **_: Table(float("nan"), [1, 2]))
    assert main.main(["parity", "--golden=g"]) == 1
    assert capfd.readouterr().out == "2 rows\n"
    assert json_files.to_json_types([Table(2.0, [])]) == [{"steps/s": 2.0, "ok": False}]


@dataclasses.dataclass
class Merged:
    rest: dict = dataclasses.field(metadata={"json": "**"})
    last: Path


def test_a_dict_can_be_merged_into_a_result():
    assert json_files.to_json_types(Merged({"a": 1, "b": (2,)}, Path("x"))) == {
        **{"a": 1, "b": [2], "last": "x"},
    }


def test_results_of_verbs_are_the_json_they_were():
    split = dict.fromkeys(doctor.COLUMNS, 1) | {"expected": None, "cut_captions": {"count": 0}}
    report = {"dataset": "d", "splits": {"val": split}, "unlisted": 0}
    report |= {"bad": [], "warnings": [], "ok": False}
    result = doctor.DoctorResult(**report, text="a table")
    assert list(json_files.to_json_types(result).items()) == list(report.items())
    assert not result.ok and result.text == "a table"
    shards = {"directory": "s", "splits": {"train": 7, "val": 1}, "bytes": 2**20, "written": True}
    result = prepare.PrepareResult(**shards)
    assert list(json_files.to_json_types(result).items()) == list(shards.items())
    assert result.text == "wrote 7 train, 1 val clips in s, 1 MiB"
    card = {"stages": 0, "sha256": {"a": "b"}, "notes": []}
    result = port.PortResult(card, Path("/d"))
    assert list(json_files.to_json_types(result).items()) == [*card.items(), ("destination", "/d")]


def test_results_become_plain_json():
    result = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        3: (1, {"nan": float("nan"), "inf": np.float64("inf")}),
        "path": Path("x"),
        "bool": np.bool_(True),
    }
    assert json_files.to_json_types(result) == {
        "a": 0.5,
        "b": [0, 1],
        "3": [1, {"nan": None, "inf": None}],
        "path": "x",
        "bool": True,
    }


NOISY = """
import ctypes, dataclasses, os, subprocess, sys, logging

@dataclasses.dataclass
class Result:
    ok: bool = False
    figure: float = 0.1
    text: str = "a table"

def run(golden, precision):
    print("python print")
    os.write(1, b"raw write\\n")
    subprocess.run(["echo", "child"])
    ctypes.CDLL(None).printf(b"buffered by C until the process ends\\n")
    sys.__stdout__.write("at the end")
    logging.getLogger("hvp_jax.noisy").info("our progress")
    logging.getLogger("other").info("a library's progress")
    logging.getLogger("other").warning("a library's warning")
    if precision == "float32":
        raise ValueError("bug")
    return Result()
"""
RUN_NOISY = """
import sys
from hvp_jax.cli import main as cli
from hvp_jax.cli.flags import GOLDEN, PRECISION, Verb
cli.VERBS["noisy"] = Verb("noisy:run", "", (GOLDEN, PRECISION))
raise SystemExit(cli.main(sys.argv[1:]))
"""


def run_noisy(tmp_path, *arguments):
    (tmp_path / "noisy.py").write_text(NOISY)
    path = f"{ROOT}:{tmp_path}"
    return run_command("-c", RUN_NOISY, "noisy", "--golden=g", *arguments, PYTHONPATH=path)


def test_with_json_stdout_holds_nothing_else(tmp_path):
    done = run_noisy(tmp_path, "--json")
    assert done.stdout == '{"ok": false, "figure": 0.1}\n' and done.status == 1
    for noise in ("python print", "raw write", "child", "buffered by C", "at the end"):
        assert noise in done.stderr
    assert "our progress" in done.stderr and "a library's warning" in done.stderr
    assert "a library's progress" not in done.stderr


def test_json_of_a_bug(tmp_path):
    done = run_noisy(tmp_path, "--json", "--precision=float32")
    assert json.loads(done.stdout) == {"error": "ValueError: bug"}
    assert done.status == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("length", [1, 1_000_000])
def test_a_closed_pipe_does_not_change_the_exit_status(length):
    code = textwrap.dedent("""
        import dataclasses, sys
        from hvp_jax.cli import main as cli
        length, status, *arguments = sys.argv[1:]
        fields = {"ok": status == "0", "text": "x" * int(length), "list": [0] * int(length)}
        result = dataclasses.make_dataclass("Result", fields)(**fields)
        cli.check = lambda arguments: (lambda: result, {})
        raise SystemExit(cli.main(arguments))
        """)
    for status, *arguments in (["0"], ["1"], ["1", "--json"]):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(length), status, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == int(status)


def test_an_error_under_json(run_cli):
    done = run_cli(*TRAIN, "--config.seed=x", "--json")
    result = json.loads(done.stdout)
    assert result == {"error": "--config.seed=x: expected a whole number (int), not 'x'"}
    assert done.status == 2 and done.stderr == f"error: {result['error']}\n"

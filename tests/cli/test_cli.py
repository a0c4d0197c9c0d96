"""Arguments, usage errors, exit statuses, and what is printed to which stream."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError, UsageError
from hvp_jax.cli import doctor, main, port, prepare
from hvp_jax.config.overrides import load
from hvp_jax.config.saved import to_json
from hvp_jax.monitoring import json_files
from tests.helpers.command import ROOT, run_command

FOLDER = f"--config={ROOT / 'configs' / 'folder.py'}"
TRAIN = ("train", FOLDER, "--workdir=never-made")
SEE = "see python run.py"
EMPTY = "expected a non-empty value"
HEAVY = ("jax", "flax", "grain", "tensorflow_datasets", "matplotlib", "orbax", "av")


@pytest.fixture
def fake(monkeypatch):
    """Replaces the function of every verb."""

    def install(run):
        monkeypatch.setitem(sys.modules, "fake_verb", types.SimpleNamespace(run=run))
        for name, verb in main.VERBS.items():
            fake = dataclasses.replace(verb, target="fake_verb:run")
            monkeypatch.setitem(main.VERBS, name, fake)

    return install


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tarin"], "unknown verb 'tarin'; did you mean train?"),
        (["zzz"], "unknown verb 'zzz'; the choices are train, eval"),
        (["train", FOLDER], f"arguments are required: --workdir; {SEE} train --help"),
        (["train", FOLDER, "--workdir="], f"--workdir: {EMPTY}; {SEE} train --help"),
        (["train", FOLDER, "--workdir", ""], f"--workdir: {EMPTY}; {SEE} train --help"),
        (["train", FOLDER, "--workdr=x"], "train has no flag --workdr=x; did you mean --workdir?"),
        (["train", FOLDER, "--workdir"], "--workdir: expected one argument"),
        (["train", "--workdir=w"], f"arguments are required: --config; {SEE} train --help"),
        (["bench"], f"arguments are required: --config; {SEE} bench --help"),
        (["eval"], f"arguments are required: --workdir; {SEE} eval --help"),
        (["parity"], f"--golden --source is required; {SEE} parity --help"),
        (["parity", "--golden=g", "--source=s"], "--source: not allowed with argument --golden"),
        (["parity", "--golden=g", "--precision=float16"], "invalid choice: 'float16'"),
        (["parity", "--golden=g", FOLDER], "parity has no flag --config=/"),
        (["parity", "--golden=g", "--config.seed=1"], "parity has no flag --config.seed"),
        ([*TRAIN, "--golden=g"], "train has no flag --golden"),
        ([*TRAIN, "--precision=float64"], "train has no flag --precision"),
        ([*TRAIN, "--workdr=x"], "train has no flag --workdr=x; did you mean --workdir?"),
        ([*TRAIN, "--work=x"], "train has no flag --work=x; did you mean --workdir?"),
        ([*TRAIN, "--verbose"], "train has no flag --verbose; the choices are --config, --workdir"),
        (["--verbose", *TRAIN], "train has no flag --verbose; the choices are --config, --workdir"),
        ([*TRAIN, "-v"], "unrecognized arguments: -v"),
        ([*TRAIN, "more"], "unexpected argument 'more'"),
        ([*TRAIN, "--json=yes"], "--json"),
        (["train", FOLDER, f"--workdir={__file__}"], "is a file; it must be a folder"),
    ],
)
def test_usage_errors_are_one_line(arguments, expected, capfd):
    assert main.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert expected in captured.err


def test_eval_takes_the_config_of_the_run(tmp_path, fake):
    seen = {}
    fake(lambda config, workdir: seen.update(config=config, workdir=workdir) or {})
    workdir = f"--workdir={tmp_path}"
    config = load(str(ROOT / "configs" / "folder.py"))
    config.model.taps = (1, 12)
    (tmp_path / "config.json").write_text(to_json(config))
    assert main.main(["eval", workdir, "--config.eval.split=val"]) == 0
    assert seen["config"].model.taps == (1, 12) and seen["config"].eval.split == "val"
    assert seen["config"].is_locked and seen["workdir"] == tmp_path
    assert main.main(["eval", FOLDER, workdir]) == 0
    assert seen["config"].model.taps is None
    assert main.main(["eval", workdir, "--config.model.taps=none"]) == 0
    assert seen["config"].model.taps is None


def test_eval_without_a_run(tmp_path, capfd):
    assert main.main(["eval", f"--workdir={tmp_path}"]) == 2
    assert f"{tmp_path / 'config.json'} does not exist" in capfd.readouterr().err
    (tmp_path / "config.json").write_bytes(b"\xff{")
    assert main.main(["eval", f"--workdir={tmp_path}"]) == 1
    assert f"error: {tmp_path / 'config.json'}: " in capfd.readouterr().err


def test_flags_reach_the_verb(fake, tmp_path):
    seen = []
    fake(lambda **values: seen.append(values) or {})
    assert main.main(["parity", "--golden=a.npz"]) == 0
    assert main.main(["--precision", "float32", "parity", "--golden", "a.npz"]) == 0
    assert main.main(["bench", FOLDER]) == 0
    assert main.main(["--golden", "eval", "--format", "openai", "parity"]) == 0
    golden = Path("a.npz")
    rest = {"source": None, "format": "auto"}
    assert seen[0] == {"golden": golden, "precision": None, **rest}
    assert seen[1] == {"golden": golden, "precision": "float32", **rest}
    assert seen[2].keys() == {"config", "workdir"} and seen[2]["workdir"] is None
    assert seen[3] == {"golden": Path("eval"), "precision": None, **rest, "format": "openai"}


def raising(error):
    def run(**values):
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status", "stderr"),
    [
        (lambda **_: {"ok": True}, 0, ""),
        (lambda **_: {"figure": 1}, 0, ""),
        (lambda **_: {"ok": False}, 1, ""),
        (raising(DataError("clip\n   one")), 1, "error: clip one\n"),
        (raising(UsageError("no such")), 2, "error: no such\n"),
        (raising(KeyboardInterrupt()), 130, "error: interrupted\n"),
    ],
)
def test_exit_status(run, status, stderr, fake, capfd):
    fake(run)
    assert main.main(["parity", "--golden=g"]) == status
    assert capfd.readouterr().err == stderr


def test_a_bug_prints_its_traceback(fake, capfd):
    fake(raising(ZeroDivisionError("by zero")))
    assert main.main(["parity", "--golden=g"]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith("Traceback") and "ZeroDivisionError: by zero" in captured.err
    assert captured.out == ""


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
import ctypes, os, subprocess, sys, logging
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
    return {"ok": False, "figure": 0.1, "text": "a table"}
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
        import sys
        from hvp_jax.cli import main as cli
        length, status, *arguments = sys.argv[1:]
        result = {"ok": status == "0", "text": "x" * int(length), "list": [0] * int(length)}
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


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_no_verb(arguments, run_cli):
    done = run_cli(*arguments)
    assert done.status == 2
    assert "error: no verb given" in done.stderr
    if arguments:
        assert json.loads(done.stdout)["error"].startswith("no verb given")
    else:
        assert all(f"  {verb} " in done.stderr for verb in main.VERBS) and not done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["train", "--help"], ["--help", "parity"], [*TRAIN, "-h"]]
)
def test_help_works_everywhere(arguments, capfd):
    assert main.main(arguments) == 0
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out.startswith("usage: python run.py ")
    verb = next((word for word in arguments if word in main.VERBS), None)
    for expected in main.VERBS[verb].names() if verb else main.VERBS:
        assert expected in captured.out


@pytest.mark.parametrize("verb", main.VERBS)
def test_help_lists_every_flag_of_a_verb(verb, capfd):
    assert main.main([verb, "--help"]) == 0
    usage, *_, flags = capfd.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: python run.py {verb} ")
    for name in (*main.VERBS[verb].names(), "--json"):
        assert name in usage and f"\n  {name}" in flags


def test_usage_errors_import_nothing_heavy(tmp_path):
    code = textwrap.dedent(f"""
        import sys
        from hvp_jax.cli.main import main
        status = main(sys.argv[1:])
        print(status, [name for name in {HEAVY} if name in sys.modules])
        """)
    for mistake in ("--config.nothing=1", "--config.seed=x", "--config.precision=x", "--help"):
        done = run_command("-c", code, *TRAIN, mistake)
        assert done.stdout.splitlines()[-1] == f"{0 if mistake == '--help' else 2} []"


def test_configs_load_from_any_folder(run_cli, tmp_path):
    done = run_cli(*TRAIN, "--config.seed=x", cwd=tmp_path)
    assert "error: --config.seed=x" in done.stderr and done.status == 2
    assert list(tmp_path.iterdir()) == []

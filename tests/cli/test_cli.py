"""Arguments, usage errors, exit statuses, and what is printed to which stream."""

import json
import textwrap
from pathlib import Path

import pytest

from data.errors import DataError, UsageError
from hvp_jax.cli import main
from hvp_jax.config.overrides import load
from hvp_jax.config.saved import to_json
from tests.helpers.command import ROOT, run_command

FOLDER = f"--config={ROOT / 'configs' / 'folder.py'}"
TRAIN = ("train", FOLDER, "--workdir=never-made")
SEE = "see python run.py"
EMPTY = "expected a non-empty value"
HEAVY = ("jax", "flax", "grain", "tensorflow_datasets", "matplotlib", "orbax", "av")


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
    rest = {"source": None, "format": "auto", "parallel": None, "workdir": None}
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

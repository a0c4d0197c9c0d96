"""From --config and --config.KEY=VALUE to a config, and what is refused."""

import pytest

from data.errors import UsageError
from hvp_jax.cli import main
from hvp_jax.cli.flags import CONFIG, WORKDIR, Verb
from hvp_jax.config.overrides import load
from tests.helpers.command import ROOT

FOLDER = f"--config={ROOT / 'configs' / 'folder.py'}"
TRAIN = ("train", FOLDER, "--workdir=never-made")


def config_of(*arguments):
    """The config that `train` receives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(main.VERBS, "train", Verb("builtins:dict", "", (CONFIG, WORKDIR)))
        _, values = main.check([*TRAIN, *arguments])
    return values["config"]


def refusal(*arguments):
    with pytest.raises(UsageError) as refused:
        config_of(*arguments)
    assert refused.value.status == 2
    return str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "group", "key", "value"),
    [
        (("--config.train.steps=100",), "train", "steps", 100),
        (("--config.train.steps", "100"), "train", "steps", 100),
        (("--config.train.steps=5", "--config.train.steps=none"), "train", "steps", None),
        (("--config.optimizer.learning_rate=1e-3",), "optimizer", "learning_rate", 1e-3),
        (("--config.optimizer.learning_rate=1",), "optimizer", "learning_rate", 1.0),
        (("--config.optimizer.weight_decay=0",), "optimizer", "weight_decay", 0.0),
        (("--config.model.taps=6",), "model", "taps", (6,)),
        (("--config.model.taps=1,6,12",), "model", "taps", (1, 6, 12)),
        (("--config.model.taps=(1, 6, 12)",), "model", "taps", (1, 6, 12)),
        (("--config.model.taps=(6,)",), "model", "taps", (6,)),
        (("--config.similarity.mask_padding=false",), "similarity", "mask_padding", False),
        (("--config.similarity.mask_padding", "True"), "similarity", "mask_padding", True),
        (("--config.data.root=a=b,c d",), "data", "root", "a=b,c d"),
        (("--config.data.root=",), "data", "root", ""),
        (("--config.model.variant=tiny",), "model", "variant", "tiny"),
    ],
)
def test_overrides(arguments, group, key, value):
    actual = config_of(*arguments)[group][key]
    assert actual == value and type(actual) is type(value)


def test_an_override_of_a_top_level_key_and_the_last_of_two_wins():
    assert config_of("--config.seed", "3").seed == 3
    assert config_of("--config.seed=3", "--config.seed=4").seed == 4


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--config.train.stepz=3", "config.train.steps"),
        ("--config.variant=tiny", "config.model.variant"),
        ("--config.tran.batch_size=3", "config.train.batch_size"),
        ("--config.sead=3", "config.seed"),
        ("--config.model.steps=3", "config.train.steps"),
        ("--config.seed.more=3", "config.seed"),
        ("--config.=3", "config."),
        ("--config.model=3", "it is a group: config.model.activation, config.model.freeze_patches"),
    ],
)
def test_the_error_for_an_unknown_key_names_the_nearest(argument, nearest):
    message = refusal(argument)
    assert message.startswith(argument.partition("=")[0] + ":") and nearest in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.seed=1.5", "int"),
        ("--config.seed=1e3", "int"),
        ("--config.seed=true", "int"),
        ("--config.seed=", "int"),
        ("--config.seed=none", "int"),
        ("--config.train.steps=ten", "int"),
        ("--config.optimizer.learning_rate=fast", "float"),
        ("--config.optimizer.learning_rate=nan", "float"),
        ("--config.optimizer.weight_decay=inf", "float"),
        ("--config.similarity.mask_padding=2", "true or false"),
        ("--config.similarity.mask_padding=", "true or false"),
        ("--config.model.taps=1,1.5", "tuple"),
        ("--config.model.taps=", "tuple"),
        ("--config.model.taps=1,,2", "tuple"),
        ("--config.model.taps=first", "tuple"),
    ],
)
def test_the_error_for_a_wrong_type_names_key_value_and_type(argument, expected):
    message = refusal(argument)
    assert message.startswith(f"{argument}: expected") and expected in message


@pytest.mark.parametrize("following", [(), ("--json",), ("--config.seed=1",)])
def test_a_key_without_a_value_is_refused(following):
    assert "--config.seed has no value" in refusal("--config.seed", *following)


@pytest.mark.parametrize(
    "argument",
    [
        "--config.parallel=jit",
        "--config.precision=float16",
        "--config.model.variant=ViT-H",
        "--config.model.remat=all",
        "--config.similarity.word_weights=gallery",
        "--config.similarity.normalize=None",
        "--config.distillation.noise=eval",
        "--config.data.dataset=imagenet",
        "--config.bench=all",
        "--config.data.max_words=78",
        "--config.train.batch_size=0",
        "--config.model.taps=12,6",
    ],
)
def test_values_are_validated_on_the_command_line(argument):
    key, _, _ = argument.removeprefix("--").partition("=")
    assert refusal(argument).startswith(f"{key} is ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", "has no function get_config"),
        ("get_config = 3", "has no function get_config"),
        ("def get_config(:\n  pass", "line 1: "),
        ("a = 1\nb = c", "line 2: NameError: name 'c'"),
        ("import nothing_like_it", "line 1: ModuleNotFoundError"),
        ("def get_config():\n  return {}", "returns dict, not a ConfigDict"),
        ("def get_config(arg):\n  return {}", "needs an argument: FILE.py:ARG"),
        ("def get_config():\n  raise ValueError('two\\nlines')", "line 2: ValueError: two lines"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()",
            "no key config.parallel; build it from configs/base.py",
        ),
    ],
)
def test_a_config_file_without_a_config_is_refused(text, expected, tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main.main(["train", f"--config={path}", f"--workdir={tmp_path / 'w'}"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert expected in captured.err and (str(path) in captured.err or "build it" in expected)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["nowhere.py", "nowhere.py:arg", "", "."])
def test_a_config_file_that_does_not_exist_is_refused(name, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(["train", f"--config={name}", "--workdir=w"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and (
        "does not exist" in error or "--config: expected a non-empty value" in error
    )


def test_the_argument_of_a_config_file(tmp_path):
    path = tmp_path / "with:colon.py"
    path.write_text(
        "from configs.base import get_config as base\n"
        "def get_config(arg='none'):\n"
        "  config = base()\n"
        "  config.data.root = arg\n"
        "  return config\n"
    )
    assert load(str(path)).data.root == "none"
    assert load(f"{path}:a/b").data.root == "a/b"
    with pytest.raises(UsageError, match="takes no argument"):
        load(f"{ROOT / 'configs' / 'demo.py'}:more")


def test_a_value_error_keeps_its_line_if_there_is_an_argument(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(arg):\n  return int(arg)\n")
    with pytest.raises(UsageError, match=r"mine\.py, line 2: ValueError: invalid literal"):
        load(f"{path}:abc")

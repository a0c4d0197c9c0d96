"""Invalid checkpoints are refused with one line that names what is wrong."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import DataError, UsageError, UserError
from hvp_jax.cli.verbs import port
from hvp_jax.weights import formats
from tests.helpers.checkpoints import openai_names, random_state, write
from tests.helpers.command import GOLDEN, run_command


def port_error(source: Path, tmp_path: Path, **options) -> UserError:
    """The one-line error of `port`, which must write nothing."""
    before = {p for p in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        port.run(source, tmp_path / "ported", **options)
    assert {p for p in tmp_path.iterdir()} == before
    assert "\n" not in str(error.value)
    return error.value


@pytest.fixture(scope="module")
def state() -> dict:
    return random_state()


@pytest.mark.parametrize("kind", ["state_dict", "huggingface", "hvpnet"])
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_wrong_tensor_is_named(kind, change, tmp_path):
    source = write(tmp_path / "source", kind, random_state(head=kind == "hvpnet"))
    if kind == "huggingface":
        tensors = load_file(source / "model.safetensors")
    else:
        tensors = torch.load(source, weights_only=False)
    inner = tensors["state_dict"] if kind == "hvpnet" else tensors
    for name in sorted(inner)[:: 1 if kind == "state_dict" else 7]:
        damaged = dict(inner)
        if change == "missing":
            if name.endswith(("layers.2.mlp.fc1.bias",)):
                continue
            del damaged[name]
        elif change == "extra":
            name = name + "_too"
            damaged[name] = torch.zeros(3)
        else:
            damaged[name] = torch.zeros((*damaged[name].shape, 2))
        if kind == "huggingface":
            save_file(damaged, source / "model.safetensors")
        else:
            torch.save({**tensors, "state_dict": damaged} if kind == "hvpnet" else damaged, source)
        with pytest.raises(DataError) as error:
            formats.open_checkpoint(source)
        assert name in str(error.value) and "\n" not in str(error.value), name


@pytest.mark.parametrize(
    "name",
    ["visual.proj", "text_projection", "visual.ln_post.bias", "visual.positional_embedding"]
    + ["transformer.resblocks.1.mlp.c_fc.weight", "visual.transformer.resblocks.0.ln_1.weight"]
    + ["visual.conv1.weight", "token_embedding.weight", "ln_final.weight", "logit_scale"],
)
def test_a_tensor_with_one_more_entry_is_named(name, state, tmp_path):
    tensors = openai_names(state)
    shape = list(tensors[name].shape) or [1]  # one number may have any shape
    shape[-1] += 1
    tensors[name] = torch.zeros(shape)
    torch.save(tensors, tmp_path / "clip.pt")
    error = port_error(tmp_path / "clip.pt", tmp_path)
    assert name in str(error) and error.status == 1


@pytest.mark.parametrize("kind", ["torchscript", "state_dict", "hvpnet"])
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_truncated_pickle(kind, part, tmp_path):
    source = write(tmp_path / "source", kind, random_state(head=kind == "hvpnet"))
    content = source.read_bytes()
    source.write_bytes(content[: int(part * len(content))])
    assert str(source) in str(port_error(source, tmp_path))


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_truncated_safetensors_file(part, state, tmp_path):
    source = write(tmp_path / "source", "huggingface", state)
    file = source / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    assert str(file) in str(port_error(source, tmp_path))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize("how", ["torch", "pickle", "among tensors"])
def test_a_pickle_that_runs_code_is_refused(how, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save({"state_dict": state, "x": Evil()} if how == "among tensors" else Evil(), file)
    error = port_error(file, tmp_path)
    assert "refused, reading it would run code" in str(error) and error.status == 1
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"video_id,caption\n", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x80\x02nonsense", bytes(64)],
)
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    file = tmp_path / "clip.pt"
    file.write_bytes(content)
    assert str(port_error(file, tmp_path)).startswith(f"{file}: ")


def test_a_zip_archive_without_tensors(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "not a complete checkpoint" in str(port_error(tmp_path / "clip.pt", tmp_path))


def test_a_pickle_without_tensors(tmp_path):
    torch.save({"lr": 0.1, "visual.proj": [1, 2]}, tmp_path / "a.pt")
    assert "lr is a float, not a tensor" in str(port_error(tmp_path / "a.pt", tmp_path))
    torch.save([torch.zeros(3)], tmp_path / "b.pt")
    assert "holds a list" in str(port_error(tmp_path / "b.pt", tmp_path))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "c.pt")
    assert "no CLIP and no HVP-Net" in str(port_error(tmp_path / "c.pt", tmp_path))


def test_a_missing_source(tmp_path):
    error = port_error(tmp_path / "nowhere", tmp_path)
    assert error.status == 2 and "no such file or directory" in str(error)
    (tmp_path / "empty").mkdir()
    assert "holds none of model.safetensors" in str(port_error(tmp_path / "empty", tmp_path))


def test_a_hugging_face_config_that_does_not_match_the_tensors(state, tmp_path):
    source = write(tmp_path / "source", "huggingface", state)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").unlink()
    assert "has no config.json" in str(port_error(source, tmp_path))
    for tower, key, value in (
        ("text_config", "hidden_size", 128),
        ("vision_config", "num_hidden_layers", 12),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "num_attention_heads", 7),
        ("text_config", "layer_norm_eps", 1e-6),
    ):
        changed = {**config, tower: {**config[tower], key: value}}
        (source / "config.json").write_text(json.dumps(changed))
        error = port_error(source, tmp_path)
        assert "config.json" in str(error) and error.status == 1, key
    (source / "config.json").write_text("{")
    assert "not readable as JSON" in str(port_error(source, tmp_path))


def test_a_wrong_format(state, tmp_path):
    source = write(tmp_path / "source", "state_dict", state)
    assert formats.open_checkpoint(source, "open_clip").format == "open_clip"  # the same names
    error = port_error(source, tmp_path, format="huggingface")
    assert error.status == 2 and "named as in openai, not as in huggingface" in str(error)
    with pytest.raises(UsageError, match="--format=onnx"):
        formats.open_checkpoint(source, "onnx")


def test_numpy_numbers_beside_the_tensors(tmp_path):
    state = random_state(head=True)
    extra = {"best_score": np.float64(3), "epoch": np.int64(2), "state_dict": state}
    torch.save(extra, tmp_path / "best.pth")
    assert formats.open_checkpoint(tmp_path / "best.pth").stages == 3


def test_ignored_tensors_have_a_reason(state, tmp_path):
    source = write(tmp_path / "source", "torchscript", state)
    card = port.run(source, tmp_path / "ported").card
    assert set(card["ignored"]) == {"input_resolution", "context_length", "vocab_size"}
    assert all(card["ignored"].values())


def test_an_optimizer_that_does_not_match_the_tensors(tmp_path):
    golden = GOLDEN / "reference_checkpoint.pth"
    checkpoint = torch.load(golden, weights_only=True)
    checkpoint["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(checkpoint, tmp_path / "a.pth")
    assert "its optimizer has 142 tensors, its state_dict 143" in str(
        port_error(tmp_path / "a.pth", tmp_path)
    )
    checkpoint = torch.load(golden, weights_only=True)
    del checkpoint["optimizer"]["state"][5]["next_v"]
    torch.save(checkpoint, tmp_path / "b.pth")
    assert "its optimizer is not the original's" in str(port_error(tmp_path / "b.pth", tmp_path))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from hvp_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_pytorch(state, tmp_path):
    """safetensors is ported both ways without PyTorch; a pickle's error says what to install."""
    source, ported = write(tmp_path / "huggingface", "huggingface", state), tmp_path / "ported"
    command = ["-c", WITHOUT_TORCH, "port", "--json"]
    done = run_command(*command, f"--source={source}", f"--destination={ported}")
    assert done.status == 0, done.stderr
    back = tmp_path / "back"
    done = run_command(
        *command, f"--source={ported}", f"--destination={back}", "--export=huggingface"
    )
    assert done.status == 0 and (back / "model.safetensors").exists(), done.stderr
    for kind in ("torchscript", "hvpnet"):
        source = write(tmp_path / kind, kind, random_state(head=kind == "hvpnet"))
        done = run_command(*command, f"--source={source}", f"--destination={tmp_path / 'none'}")
        assert done.status == 2 and not (tmp_path / "none").exists()
        assert "install PyTorch (requirements-torch.txt)" in done.stderr
        assert done.stderr.count("\n") == 1
    done = run_command("-c", WITHOUT_TORCH, "parity", f"--source={tmp_path / 'huggingface'}")
    assert done.status == 2 and "install it (requirements-torch.txt)" in done.stderr

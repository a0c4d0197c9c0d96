"""Files that are no checkpoint, or not quite one: a line that names what is wrong, and no more."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import DataError, UsageError, UserError
from hvp_jax.cli import port
from hvp_jax.weights import formats
from tests.helpers.checkpoints import openai_names, random_state, write
from tests.helpers.command import GOLDEN, run_command


def refused(source: Path, tmp_path: Path, **options) -> UserError:
    """The error, after a look that nothing was written."""
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
def test_one_tensor_that_is_off_is_named(kind, change, tmp_path):
    source = write(tmp_path / "source", kind, random_state(head=kind == "hvpnet"))
    if kind == "huggingface":
        tensors = load_file(source / "model.safetensors")
    else:
        tensors = torch.load(source, weights_only=False)
    inner = tensors["state_dict"] if kind == "hvpnet" else tensors
    for name in sorted(inner)[:: 1 if kind == "state_dict" else 7]:
        found = dict(inner)
        if change == "missing":
            if name.endswith(("layers.2.mlp.fc1.bias",)):
                continue
            del found[name]
        elif change == "extra":
            name = name + "_too"
            found[name] = torch.zeros(3)
        else:
            found[name] = torch.zeros((*found[name].shape, 2))
        if kind == "huggingface":
            save_file(found, source / "model.safetensors")
        else:
            torch.save({**tensors, "state_dict": found} if kind == "hvpnet" else found, source)
        with pytest.raises(DataError) as error:
            formats.open_checkpoint(source)
        assert name in str(error.value) and "\n" not in str(error.value), name


@pytest.mark.parametrize(
    "name",
    ["visual.proj", "text_projection", "visual.ln_post.bias", "visual.positional_embedding"]
    + ["transformer.resblocks.1.mlp.c_fc.weight", "visual.transformer.resblocks.0.ln_1.weight"]
    + ["visual.conv1.weight", "token_embedding.weight", "ln_final.weight", "logit_scale"],
)
def test_a_tensor_one_longer_is_named(name, state, tmp_path):
    found = openai_names(state)
    shape = list(found[name].shape) or [0]
    shape[-1] += 1
    found[name] = torch.zeros(shape)
    torch.save(found, tmp_path / "clip.pt")
    error = refused(tmp_path / "clip.pt", tmp_path)
    assert name in str(error) and error.status == 1


@pytest.mark.parametrize("kind", ["torchscript", "state_dict", "hvpnet"])
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_pickle_cut_short(kind, part, tmp_path):
    source = write(tmp_path / "source", kind, random_state(head=kind == "hvpnet"))
    content = source.read_bytes()
    source.write_bytes(content[: int(part * len(content))])
    assert str(source) in str(refused(source, tmp_path))


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
def test_a_safetensors_file_cut_short(part, state, tmp_path):
    source = write(tmp_path / "source", "huggingface", state)
    file = source / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    assert str(file) in str(refused(source, tmp_path))


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
    error = refused(file, tmp_path)
    assert "refused, it wants to run code" in str(error) and error.status == 1
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"video_id,caption\n", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x80\x02nonsense", bytes(64)],
)
def test_another_file(content, tmp_path):
    file = tmp_path / "clip.pt"
    file.write_bytes(content)
    assert str(refused(file, tmp_path)).startswith(f"{file}: ")


def test_an_archive_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "clip.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert "no whole checkpoint" in str(refused(tmp_path / "clip.pt", tmp_path))


def test_a_dict_of_other_things(tmp_path):
    torch.save({"lr": 0.1, "visual.proj": [1, 2]}, tmp_path / "a.pt")
    assert "lr is a float, not a tensor" in str(refused(tmp_path / "a.pt", tmp_path))
    torch.save([torch.zeros(3)], tmp_path / "b.pt")
    assert "holds a list" in str(refused(tmp_path / "b.pt", tmp_path))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "c.pt")
    assert "no CLIP and no HVP-Net" in str(refused(tmp_path / "c.pt", tmp_path))


def test_what_is_not_there(tmp_path):
    error = refused(tmp_path / "nowhere", tmp_path)
    assert error.status == 2 and "no such file or directory" in str(error)
    (tmp_path / "empty").mkdir()
    assert "holds none of model.safetensors" in str(refused(tmp_path / "empty", tmp_path))


def test_a_hugging_face_directory_whose_config_is_not_its_own(state, tmp_path):
    source = write(tmp_path / "source", "huggingface", state)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").unlink()
    assert "has no config.json" in str(refused(source, tmp_path))
    for tower, key, value in (
        ("text_config", "hidden_size", 128),
        ("vision_config", "num_hidden_layers", 12),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "num_attention_heads", 7),
        ("text_config", "layer_norm_eps", 1e-6),
    ):
        changed = {**config, tower: {**config[tower], key: value}}
        (source / "config.json").write_text(json.dumps(changed))
        error = refused(source, tmp_path)
        assert "config.json" in str(error) and error.status == 1, key
    (source / "config.json").write_text("{")
    assert "not readable as JSON" in str(refused(source, tmp_path))


def test_a_format_that_it_is_not(state, tmp_path):
    source = write(tmp_path / "source", "state_dict", state)
    assert formats.open_checkpoint(source, "open_clip").format == "open_clip"  # the same names
    error = refused(source, tmp_path, format="huggingface")
    assert error.status == 2 and "named as in openai, not as in huggingface" in str(error)
    with pytest.raises(UsageError, match="--format=onnx"):
        formats.open_checkpoint(source, "onnx")


def test_numbers_that_trainers_leave_beside_the_tensors(tmp_path):
    state = random_state(head=True)
    extra = {"best_score": np.float64(3), "epoch": np.int64(2), "state_dict": state}
    torch.save(extra, tmp_path / "best.pth")
    assert formats.open_checkpoint(tmp_path / "best.pth").stages == 3


def test_ignored_tensors_have_a_reason(state, tmp_path):
    source = write(tmp_path / "source", "torchscript", state)
    card = port.run(source, tmp_path / "ported").card
    assert set(card["ignored"]) == {"input_resolution", "context_length", "vocab_size"}
    assert all(card["ignored"].values())


def test_an_optimizer_that_does_not_fit(tmp_path):
    golden = GOLDEN / "reference_checkpoint.pth"
    found = torch.load(golden, weights_only=True)
    found["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(found, tmp_path / "a.pth")
    assert "its optimizer has 142 tensors, its state_dict 143" in str(
        refused(tmp_path / "a.pth", tmp_path)
    )
    found = torch.load(golden, weights_only=True)
    del found["optimizer"]["state"][5]["next_v"]
    torch.save(found, tmp_path / "b.pth")
    assert "its optimizer is not the original's" in str(refused(tmp_path / "b.pth", tmp_path))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from hvp_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_pytorch(state, tmp_path):
    """safetensors needs none of it, in and out; a pickle says what to install."""
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

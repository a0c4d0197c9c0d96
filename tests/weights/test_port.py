"""Ports checkpoints of every format both ways, and compares with PyTorch's results."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.torch import load_file

from data.batches.batch import Batch
from data.errors import UsageError
from hvp_jax.cli.verbs import port
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parity import torch_checkpoint
from hvp_jax.training import step_spec, train_state
from hvp_jax.training.optimization.optimizer import make_optimizer
from hvp_jax.training.train_step import train_step
from hvp_jax.weights import formats, initial, optimizer_state, torch_params
from tests.helpers.checkpoints import KINDS, SMALL, random_state, write
from tests.helpers.command import GOLDEN

pytestmark = pytest.mark.usefixtures("quick_compile")


def state_for(kind: str) -> dict:
    state = random_state(head=kind == "hvpnet")
    # Stored in half precision, so only values of half precision come back unchanged.
    return {n: x.half().float() for n, x in state.items()} if kind == "torchscript" else state


@pytest.mark.parametrize("kind", KINDS)
def test_port_and_export_keep_every_bit(kind, tmp_path):
    state = state_for(kind)
    source = write(tmp_path / "source", kind, state)
    card = port.run(source, tmp_path / "ported").card
    assert (card["format"], card["clip_config"]["activation"]) == KINDS[kind]
    assert card == {**card, "stages": 3 if kind == "hvpnet" else 0, "step": 0}
    assert all(len(digest) == 64 for digest in card["sha256"].values())
    head = ["distill", "frame_weight", "patch_weight", "word_weight"]
    assert card["new"] == ([] if kind == "hvpnet" else head)
    from_its_name = kind in ("open_clip", "state_dict")
    assert ("QuickGELU is assumed" in str(card["notes"])) == from_its_name
    port.run(tmp_path / "ported", tmp_path / "back", export="hvpnet")
    back = load_file(tmp_path / "back/model.safetensors")
    assert sorted(back) == sorted(state)
    for name, x in state.items():
        assert back[name].dtype == x.dtype and torch.equal(back[name], x), name


def test_of_two_that_port_to_one_destination_the_slower_one_is_refused(tmp_path, monkeypatch):
    source = write(tmp_path / "source", "state_dict", random_state())
    convert_torch = port.convert.convert_torch

    def convert_slowly(*arguments):
        (tmp_path / "ported").mkdir()
        (tmp_path / "ported" / "model.json").touch()
        return convert_torch(*arguments)

    monkeypatch.setattr(port.convert, "convert_torch", convert_slowly)
    with pytest.raises(UsageError, match="ported cannot be created: .*another process"):
        port.run(source, tmp_path / "ported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ported", "source"]
    assert [path.name for path in (tmp_path / "ported").iterdir()] == ["model.json"]


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_match_pytorch_layer_by_layer(kind, tmp_path):
    source = write(tmp_path, kind, state_for(kind))
    report = torch_checkpoint.compare_checkpoint(source, "auto", "float32")
    assert report.ok, report.text
    assert [row.name for row in report.arrays if row.name.startswith("image")] == [
        *(f"image/layer{i}" for i in (1, 2, 3)),
        "image/features",
    ]
    assert max(row.relative for row in report.arrays) > 0  # not compared with itself


def test_a_wrong_layout_is_detected(tmp_path, monkeypatch):
    source = write(tmp_path, "state_dict", random_state())
    to_jax = torch_params._to_jax

    def untransposed(x, layout):
        return x if layout == "linear" and x.shape[0] == x.shape[1] else to_jax(x, layout)

    monkeypatch.setattr(torch_params, "_to_jax", untransposed)
    report = torch_checkpoint.compare_checkpoint(source, "auto", "float32")
    assert not report.ok and "image/layer1" in report.failed


def test_an_export_is_ported_again_with_its_activation(tmp_path):
    first = write(tmp_path / "a", "huggingface_bin", random_state())
    port.run(first, tmp_path / "b", export="hvpnet")
    card = port.run(tmp_path / "b", tmp_path / "c").card
    assert card["clip_config"]["activation"] == "gelu" and card["format"] == "hvpnet"
    port.run(first, tmp_path / "d", export="huggingface")
    assert port.run(tmp_path / "d", tmp_path / "e").card["clip_config"] == card["clip_config"]


def test_training_continues_as_in_pytorch():
    """From a checkpoint of the original, the next three updates equal PyTorch's."""
    source = formats.open_checkpoint(GOLDEN / "reference_checkpoint.pth")
    moments = optimizer_state.read_adam_moments(source)
    params = torch_params.from_torch(source.tensors, source.scheme)
    state = train_state.imported_train_state(params, moments.first, moments.second, moments.steps)
    with np.load(GOLDEN / "pytorch_small.npz") as file:
        batch = {n.removeprefix("input/"): file[n] for n in file.files if n.startswith("input/")}
    batch["video"] = np.moveaxis(batch["video"], 2, -1)
    batch = Batch(**{n: x.astype(bool) if n.endswith("mask") else x for n, x in batch.items()})
    taps = tuple(
        i + 1 for i in json.loads((GOLDEN / "pytorch_small.json").read_text())["layers_zero_based"]
    )
    model = HVPNet(source.clip_config, taps, source.stages, normalize="none", mask_padding=False)
    c = moments.constants
    optimizer = make_optimizer(
        c["lr"][1],
        c["lr"][0],
        c["t_total"],
        warmup_fraction=c["warmup"],
        weight_decay=c["weight_decay"],
        max_grad_norm=c["max_grad_norm"],
        b1=c["b1"],
        b2=c["b2"],
        epsilon=c["e"],
    )
    partitioner = Partitioner("pmap", devices=jax.devices()[:1])
    spec = step_spec.StepSpec(model=model, optimizer=optimizer, noise=False, paired=True)

    step = functools.partial(train_step, spec=spec)
    run, state = partitioner.compile_train_step(step, state), partitioner.shard_state(state)
    with np.load(GOLDEN / "reference_checkpoint_next.npz") as file:
        golden = {name: file[name] for name in file.files}
    assert int(state.step) == 3
    for i in range(3):
        state, metrics = run(state, partitioner.shard_batch(batch))
        np.testing.assert_allclose(metrics["loss"], golden["loss"][i], rtol=1e-5)
        np.testing.assert_allclose(metrics["log_scale"], golden["logit_scale"][i], rtol=1e-6)
    after = torch_params.to_torch(state.params)
    compared = [name for name in golden if name.startswith("after6/")]
    assert len(compared) > 50
    for name in compared:
        x = golden[name]
        error = np.abs(after[name.removeprefix("after6/")] - x).max() / np.abs(x).max()
        assert error < 1e-4, (name, error)


def test_the_moments_of_an_original_checkpoint():
    source = formats.open_checkpoint(GOLDEN / "reference_checkpoint.pth")
    moments = optimizer_state.read_adam_moments(source)
    first, second = (flatten_dict(tree, sep="/") for tree in (moments.first, moments.second))
    assert moments.steps == 3 and moments.constants["lr"] == [1e-4, 1e-3, 1e-4, 1e-3]
    zero = {path for path, x in first.items() if not x.any()}
    assert zero == {"clip/visual/patch_embedding"}  # frozen
    assert all((x >= 0).all() for x in second.values())


def test_position_embeddings_are_resized_as_pytorch_does():
    rng = np.random.default_rng(0)
    position = rng.standard_normal((1 + 49, 8)).astype(np.float32)
    for side in (4, 7, 12):
        resized = initial.resize_positions(position, side)
        grid = torch.tensor(position[1:].reshape(1, 7, 7, 8)).permute(0, 3, 1, 2)
        golden = torch.nn.functional.interpolate(
            grid, (side, side), mode="bicubic", antialias=True, align_corners=False
        )
        golden = golden.permute(0, 2, 3, 1).reshape(side * side, 8)
        np.testing.assert_array_equal(resized[0], position[0])
        np.testing.assert_allclose(resized[1:], golden, atol=2e-6)


def test_a_destination_that_is_not_empty_is_left_alone(tmp_path):
    source = write(tmp_path / "source", "state_dict", random_state())
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; name a new"):
        port.run(source, tmp_path / "there")
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["notes.txt"]


def test_the_command(tmp_path, run_cli):
    source = write(tmp_path / "source", "hvpnet", random_state(head=True))
    done = run_cli("port", f"--source={source}", f"--destination={tmp_path / 'd'}", "--json")
    assert done.status == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["clip_config"]["vision_layers"] == SMALL.vision_layers and "text" not in card
    assert (tmp_path / "d/model_card.md").read_text().startswith("# Model card")
    again = run_cli("port", f"--source={tmp_path / 'd'}", f"--destination={tmp_path / 'e'}")
    assert again.status == 2 and "is a workdir, not PyTorch" in again.stderr

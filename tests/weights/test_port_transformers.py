"""Ports checkpoints from and to Hugging Face's own CLIPModel."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from hvp_jax.cli.verbs import port
from hvp_jax.parity import torch_checkpoint
from tests.helpers.checkpoints import random_state, write

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture
def model() -> CLIPModel:
    torch.manual_seed(0)
    text = dict(
        hidden_size=48,
        intermediate_size=100,  # not four times the width
        num_hidden_layers=2,
        num_attention_heads=4,  # heads not 64 wide
        vocab_size=200,
        max_position_embeddings=20,
        bos_token_id=198,
        eos_token_id=199,
    )
    vision = dict(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
        hidden_act="gelu",
    )
    text["hidden_act"] = "gelu"
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
def test_its_checkpoints_are_ported_and_exported(model, shards, tmp_path):
    model.save_pretrained(tmp_path / "a", max_shard_size=shards)
    assert (tmp_path / "a/model.safetensors.index.json").exists() == (shards != "1GB")
    report = torch_checkpoint.compare_checkpoint(tmp_path / "a", "auto", "float32")
    assert report.ok and report.against.startswith("transformers"), report.text
    assert max(row.relative for row in report.arrays) < 2e-6
    card = port.run(tmp_path / "a", tmp_path / "b", export="huggingface").card
    assert (
        card["clip_config"]["activation"] == "gelu" and card["clip_config"]["text_mlp_dim"] == 100
    )
    back = CLIPModel.from_pretrained(tmp_path / "b").state_dict()
    for name, x in model.state_dict().items():
        assert torch.equal(back[name], x), name


def test_it_runs_an_export(tmp_path):
    source = write(tmp_path / "a", "torchscript", random_state())
    port.run(source, tmp_path / "b", export="huggingface")
    report = torch_checkpoint.compare_checkpoint(tmp_path / "b", "huggingface", "float32")
    assert report.ok and report.against.startswith("transformers"), report.text


def test_a_logit_scale_of_shape_1_can_be_compared(model, tmp_path):
    """As FSDP writes it; `transformers` alone refuses it."""
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    report = torch_checkpoint.compare_checkpoint(tmp_path, "auto", "float32")
    assert report.ok and report.against.startswith("transformers ")

"""Tensors that public checkpoints hold in another form than CLIP's own."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import DataError
from hvp_jax.cli.verbs import port
from hvp_jax.models.layers import PIXEL_MEAN, PIXEL_STD
from hvp_jax.weights import formats, optimizer_state
from tests.helpers.checkpoints import (
    KINDS,
    SMALL,
    openai_names,
    optimizer_of,
    random_state,
    sized,
    write,
)


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_logit_scale_of_one_number_is_a_scalar(kind, shape, tmp_path):
    """FSDP's checkpoints and open_clip's `nonscalar_logit_scale` hold [1]."""
    state = random_state(head=kind == "hvpnet")
    if kind == "torchscript":
        state = {name: x.half().float() for name, x in state.items()}
    changed = {**state, "clip.logit_scale": state["clip.logit_scale"].reshape(shape)}
    source = write(tmp_path / "source", kind, changed)
    port.run(source, tmp_path / "ported")
    port.run(tmp_path / "ported", tmp_path / "back", export="hvpnet")
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == state.keys()
    for name, x in state.items():
        assert torch.equal(back[name], x) and back[name].shape == x.shape, name


def test_the_moments_of_a_logit_scale_of_one_number(tmp_path):
    state = random_state(head=True)
    state["clip.logit_scale"] = state["clip.logit_scale"].reshape(1)
    torch.save({"state_dict": state, "optimizer": optimizer_of(state, 3)}, tmp_path / "3.pth")
    moments = optimizer_state.read_adam_moments(formats.open_checkpoint(tmp_path / "3.pth"))
    assert moments.first["clip"]["logit_scale"].shape == ()


def test_two_numbers_are_no_logit_scale(tmp_path):
    state = {**random_state(), "clip.logit_scale": torch.zeros(2)}
    source = write(tmp_path, "state_dict", state)
    with pytest.raises(DataError, match=r"logit_scale: of shape \[2\]"):
        formats.open_checkpoint(source)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_logit_bias_is_ignored_with_the_reason(shape, tmp_path):
    state = {**random_state(), "clip.logit_bias": torch.full(shape, -10.0)}
    source = write(tmp_path / "a", "state_dict", state)
    card = port.run(source, tmp_path / "b").card
    assert "changes no ranking and no softmax" in card["ignored"]["logit_bias"]
    state["clip.logit_bias"] = torch.zeros(5)
    source = write(tmp_path / "a", "state_dict", state)
    with pytest.raises(
        DataError, match="logit_bias: a tensor that such a checkpoint does not have"
    ):
        formats.open_checkpoint(source)


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_prefixes_and_types(prefix, dtype, tmp_path):
    state = {name: x.half().bfloat16().float() for name, x in random_state().items()}
    tensors = {prefix + name: x.to(dtype) for name, x in openai_names(state).items()}
    save_file(tensors, tmp_path / "vit_b_16-datacomp.safetensors")
    port.run(tmp_path / "vit_b_16-datacomp.safetensors", tmp_path / "b", export="hvpnet")
    back = load_file(tmp_path / "b/model.safetensors")
    assert all(torch.equal(back[name], x) for name, x in state.items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_quantised_weights_are_refused(dtype, ending, tmp_path):
    tensors = openai_names(random_state())
    tensors["visual.proj"] = tensors["visual.proj"].to(dtype)
    path = tmp_path / f"vit_b_16-datacomp.{ending}"
    (save_file if ending == "safetensors" else torch.save)(tensors, path)
    with pytest.raises(DataError, match="visual.proj is of type .*, so the weights are quantised"):
        port.run(path, tmp_path / "ported")
    assert not (tmp_path / "ported").exists()


def test_long_clip_has_two_position_embeddings(tmp_path):
    """Long-CLIP adds the first to positions 0 to 19 and the second to those from 20 on."""
    config = sized(context_length=248)
    tensors = openai_names(random_state(config))
    first, second = (
        torch.randn(248, 64, generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    )
    tensors |= {"positional_embedding": first, "positional_embedding_res": second}
    torch.save(tensors, tmp_path / "mine.pt")
    source = formats.open_checkpoint(tmp_path / "mine.pt")
    assert source.clip_config == config and "Long-CLIP" in source.notes[0]
    mask = (torch.arange(248) < 20).float()[:, None]
    expected = first * mask + second * (1 - mask)
    params = source.load()
    np.testing.assert_array_equal(params["clip"]["text"]["position_embedding"], expected)


MEAN, STD = [0.5, 0.4, 0.5], [0.5, 0.5, 0.25]


@pytest.mark.parametrize("kind", ["open_clip_nested", "huggingface"])
def test_another_normalisation_of_pixels_is_folded_into_the_weights(kind, tmp_path):
    """LAION's ViT-L/14 on LAION-2B was trained on pixels of mean and deviation 0.5."""
    state = random_state()
    source = write(tmp_path / "a", kind, state)
    normalize(source, MEAN, STD)
    opened = formats.open_checkpoint(source)
    assert "trained on pixels of mean (0.5, 0.4, 0.5)" in str(opened.notes)
    visual = opened.load()["clip"]["visual"]
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    golden = torch.nn.functional.conv2d(theirs, state["clip.visual.conv1.weight"], stride=16)
    golden = golden.flatten(2)[0].T + state["clip.visual.positional_embedding"][1:]
    ours = (pixels[0].permute(1, 2, 0).numpy() - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    patches = ours.reshape(2, 16, 2, 16, 3).swapaxes(1, 2).reshape(4, -1)
    computed = patches @ visual["patch_embedding"] + visual["position_embedding"][1:]
    np.testing.assert_allclose(computed, golden, atol=2e-5)
    np.testing.assert_array_equal(
        visual["position_embedding"][0], state["clip.visual.positional_embedding"][0]
    )
    port.run(source, tmp_path / "b")
    assert "folded into the patch and position" in (tmp_path / "b/model_card.md").read_text()


def normalize(folder, mean, std) -> None:
    """Writes the normalisation of pixels where the library of a checkpoint does."""
    path = folder / "open_clip_config.json"
    if path.exists():
        config = json.loads(path.read_text()) | {"preprocess_cfg": {"mean": mean, "std": std}}
        path.write_text(json.dumps(config))
    else:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({"image_mean": mean, "image_std": std}))


@pytest.mark.parametrize("kind", ["open_clip_nested", "huggingface"])
def test_clips_own_normalisation_changes_no_bit(kind, tmp_path):
    state = random_state()
    source = write(tmp_path / "a", kind, state)
    for mean, std in ((list(PIXEL_MEAN), list(PIXEL_STD)), ([0.481, 0.458, 0.408], None)):
        normalize(source, mean, std)
        assert formats.open_checkpoint(source).normalization is None
        assert formats.open_checkpoint(source).clip_config.image_size == SMALL.image_size
    for mean, std in (([0.5], STD), (MEAN, [0, 1, 1]), ("imagenet", STD), (MEAN, [1, None, 1])):
        normalize(source, mean, std)
        with pytest.raises(DataError, match="config.json: .*deviation"):
            formats.open_checkpoint(source)

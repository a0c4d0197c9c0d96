"""Conversion of the original's names and layouts, both ways and strict."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from data.errors import DataError
from hvp_jax.models.hvpnet import HVPNet, init_params
from hvp_jax.weights import torch_params
from hvp_jax.weights.infer_config import infer_config
from tests.helpers.command import GOLDEN

SMALL = GOLDEN / "pytorch_small.npz"


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    with np.load(SMALL) as file:
        names = [name for name in file.files if name.startswith("state/")]
        return {name.removeprefix("state/"): file[name] for name in names}


def test_the_round_trip_keeps_every_bit(state):
    back = torch_params.to_torch(torch_params.from_torch(state))
    assert sorted(back) == sorted(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape, name
        assert back[name].tobytes() == array.tobytes(), name


def test_the_tree_has_the_structure_of_the_model(state):
    params = torch_params.from_torch(state)
    config, stages = infer_config({name: x.shape for name, x in state.items()})
    assert (config.image_size, config.patch_size, config.vision_layers, stages) == (48, 16, 4, 3)
    model = HVPNet(config, (1, 3, 4), stages)
    expected = jax.eval_shape(lambda: init_params(model, 0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)


def test_layouts(state):
    params = torch_params.from_torch(state)
    qkv = state["clip.visual.transformer.resblocks.2.attn.in_proj_weight"]
    blocks = params["clip"]["visual"]["tower"]["blocks"]
    np.testing.assert_array_equal(blocks["qkv"]["kernel"][2], qkv.T)
    conv = state["PatchListProcessing.blocks.1.pcm.conv.conv.weight"]  # [out, in, kernel]
    assert params["distill"]["stage_1"]["conv"]["kernel"][2, 5, 7] == conv[7, 5, 2]
    patches = state["clip.visual.conv1.weight"]  # [width, 3, row, column]
    kernel = params["clip"]["visual"]["patch_embedding"]
    assert kernel[(4 * 16 + 9) * 3 + 1, 33] == patches[33, 1, 4, 9]


@pytest.mark.parametrize(
    "name",
    [
        "clip.logit_scale",
        "clip.visual.proj",
        "f_feat_w.2.bias",
        "clip.visual.transformer.resblocks.3.mlp.c_fc.bias",
        "PatchListProcessing.blocks.0.att.attn.kv.weight",
        "clip.transformer.resblocks.1.ln_2.weight",
    ],
)
def test_a_missing_tensor_is_named(state, name):
    others = {other: array for other, array in state.items() if other != name}
    with pytest.raises(DataError) as error:
        torch_params.from_torch(others)
    assert str(error.value).startswith(f"{name}: not among the {len(others)} tensors")


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_missing_layer_is_named(state, layer):
    prefix = f"clip.visual.transformer.resblocks.{layer}."
    others = {name: array for name, array in state.items() if not name.startswith(prefix)}
    if layer == 3:  # the last one: what remains is a complete tower of three layers
        config, _ = infer_config({name: x.shape for name, x in others.items()})
        assert config.vision_layers == 3
        return
    with pytest.raises(DataError, match=rf"^clip.visual.transformer.resblocks.{layer}: .* 0 to 3$"):
        torch_params.from_torch(others)


@pytest.mark.parametrize(
    "name",
    [
        "clip.visual.conv1.bias",
        "clip.visual.transformer.resblocks.0.attn.extra",
        "PatchListProcessing.blocks.2.pcm.scores.bias",
        "module.clip.logit_scale",
    ],
)
def test_an_unknown_tensor_is_named(state, name):
    with pytest.raises(DataError) as error:
        torch_params.from_torch(state | {name: np.zeros(3, np.float32)})
    assert name in str(error.value) and "\n" not in str(error.value)


def test_an_empty_state_dict_is_refused():
    with pytest.raises(DataError, match=r"clip\.logit_scale: not among the 0 tensors"):
        torch_params.from_torch({})


def test_every_parameter_has_one_rule(state):
    paths = [source.path for source in torch_params.match_tensors(state)]
    assert len(set(paths)) == len(paths)
    assert set(paths) == set(flatten_dict(torch_params.from_torch(state), sep="/"))

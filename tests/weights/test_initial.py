"""`model.weights` and workdirs: a model has the sizes of its weights, and begins with them."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache

from configs.base import get_config
from data.errors import UsageError
from data.synthetic import shapes
from hvp_jax.cli import main, port
from hvp_jax.config.resolve import resolve
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import from_config
from hvp_jax.weights import initial, param_mapping, torch_params
from tests.helpers.checkpoints import optimizer_of, random_state, write
from tests.helpers.command import COMPILED

pytestmark = pytest.mark.usefixtures("quick_compile")

# CLIP's vocabulary, for captions; a tower of two layers, so that it compiles at once.
SIZES = ClipConfig(
    image_size=32,
    patch_size=16,
    vision_width=64,
    vision_layers=2,
    text_width=64,
    text_layers=1,
    embed_dim=32,
)


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """Runs of one model in this process share what they compile."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", COMPILED["JAX_COMPILATION_CACHE_DIR"])
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    clip = write(folder / "clip", "huggingface", random_state(SIZES), SIZES)
    whole = write(folder / "whole", "hvpnet", random_state(SIZES, head=True))
    port.run(whole, folder / "ported")
    return {"clip": clip, "whole": whole, "ported": folder / "ported"}


def config_with(path: Path | str, **model):
    config = get_config()
    config.model.weights = str(path)
    for key, value in model.items():
        config.model[key] = value
    return config


def begin(config, workdir: Path | None = None) -> tuple:
    found = initial.find_initial_weights(config, workdir)
    config = resolve(config, found.spec)
    model = from_config(config, found.spec.clip_config)
    return config, model, initial.init_or_load_params(found, model, config.seed)


@pytest.mark.parametrize("kind", ["whole", "ported"])
def test_a_run_begins_with_all_of_them(checkpoints, kind):
    config, model, params = begin(config_with(checkpoints[kind]))
    assert model.clip_config == SIZES and config.model.variant is None
    assert config.model.image_size == 32 and config.model.taps == (1, 2)
    assert config.optim.clip_learning_rate == 1e-7 and config.model.freeze_patches
    expected = random_state(SIZES, head=True)
    for name, x in torch_params.to_torch(params).items():
        np.testing.assert_array_equal(x, expected[name].numpy(), err_msg=name)


def test_a_run_begins_with_clip_and_a_random_head(checkpoints, caplog):
    caplog.set_level("INFO")
    _, _, params = begin(config_with(checkpoints["clip"]))
    assert "the weights are CLIP's alone" in caplog.text
    state = torch_params.to_torch({"clip": params["clip"]}, param_mapping.NamingScheme(head=False))
    for name, x in random_state(SIZES).items():
        np.testing.assert_array_equal(state[name], x.numpy(), err_msg=name)
    assert np.abs(params["distill"]["stage_2"]["conv"]["kernel"]).max() > 0


def test_positions_are_resized_and_it_is_said(checkpoints, caplog):
    caplog.set_level("INFO")
    _, model, params = begin(config_with(checkpoints["whole"], image_size=64))
    assert model.clip_config.image_size == 64
    assert params["clip"]["visual"]["position_embedding"].shape == (17, 64)
    assert "2 x 2 patches are resized to 4 x 4" in caplog.text
    with pytest.raises(UsageError, match="image_size=40 is no multiple of the patch size, 16"):
        begin(config_with(checkpoints["whole"], image_size=40))


def test_another_variant_than_the_weights_is_refused(checkpoints):
    with pytest.raises(UsageError, match="ViT-B/32 has patch_size 32, the weights have 16; leave"):
        begin(config_with(checkpoints["whole"], variant="ViT-B/32"))


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint"):
        begin(config_with(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="there is no checkpoint"):
        begin(config_with(tmp_path))


def test_a_vocabulary_too_small_for_captions(tmp_path):
    small = write(tmp_path, "hvpnet", random_state(head=True))
    with pytest.raises(
        UsageError, match="its vocabulary is of 100; captions are written in CLIP's"
    ):
        begin(config_with(small))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command("eval", "--workdir=W")` runs the verb in this process, and returns its answer."""
    alone = jax.devices()[:1]  # of the eight that are simulated
    monkeypatch.setattr(jax, "devices", lambda *_: alone)
    folder = tmp_path / "folder"
    shapes.make_dataset(str(folder), train=8, val=0, test=4)
    common = [f"--config.data.root={folder}", "--config.train.batch_size=8"]
    common += ["--config=configs/folder.py", "--config.eval.batch_size=8"]
    common += ["--config.data.max_frames=2"]

    def run(verb: str, *flags: str) -> dict:
        function, values = main.check([verb, *common, *flags])
        return function(**values)

    return run


def test_a_run_goes_on_without_the_checkpoint_it_began_with(checkpoints, command, tmp_path):
    own = shutil.copy(checkpoints["whole"], tmp_path / "own.pth")
    flags = [f"--config.model.weights={own}", f"--workdir={tmp_path / 'run'}"]
    first = command("train", *flags, "--config.train.steps=5")
    card = json.loads((tmp_path / "run/model.json").read_text())
    assert card["pretrained"] and card["clip_config"]["vision_layers"] == 2
    own.unlink()
    again = command("train", *flags, "--config.train.steps=5")
    assert again["step"] == 5 and again["text_to_video"] == first["text_to_video"]


def test_eval_takes_a_checkpoint_or_what_was_ported(checkpoints, command, tmp_path):
    weights_flag = f"--config.model.weights={checkpoints['whole']}"
    direct = command("eval", weights_flag, f"--workdir={tmp_path / 'a'}")
    ported = command("eval", f"--workdir={checkpoints['ported']}")
    assert direct["text_to_video"] == ported["text_to_video"]
    weights_flag = f"--config.model.weights={checkpoints['clip']}"
    alone = command("eval", weights_flag, f"--workdir={tmp_path / 'b'}")
    assert "CLIP's alone" in alone["checkpoint"]["warning"]


def test_training_goes_on_from_the_moments_or_not_at_all(checkpoints, command, tmp_path):
    with pytest.raises(UsageError, match="holds weights but no optimizer"):
        command("train", f"--workdir={checkpoints['ported']}")
    state = random_state(SIZES, head=True)
    torch.save({"state_dict": state, "optimizer": optimizer_of(state, 3)}, tmp_path / "3.pth")
    port.run(tmp_path / "3.pth", tmp_path / "there")
    for _ in range(2):  # a second time, with nothing left to do
        flags = [f"--workdir={tmp_path / 'there'}", "--config.train.steps=5"]
        assert command("train", *flags)["step"] == 5
    rows = (tmp_path / "there/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [5]

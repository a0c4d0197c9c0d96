"""`model.weights` and workdirs: the model takes their sizes and starts from their weights."""

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
from hvp_jax.cli import main
from hvp_jax.cli.verbs import port
from hvp_jax.config.resolve import resolve
from hvp_jax.models.clip_config import ClipConfig
from hvp_jax.models.hvpnet import from_config
from hvp_jax.weights import initial, param_mapping, torch_params
from tests.helpers.checkpoints import optimizer_of, random_state, write
from tests.helpers.command import COMPILED

pytestmark = pytest.mark.usefixtures("quick_compile")

# CLIP's vocabulary, for captions; few layers, to compile quickly.
CONFIG = ClipConfig(
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
    """Runs of the same model in this process share their compiled programs."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", COMPILED["JAX_COMPILATION_CACHE_DIR"])
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    clip = write(folder / "clip", "huggingface", random_state(CONFIG), CONFIG)
    hvpnet = write(folder / "hvpnet", "hvpnet", random_state(CONFIG, head=True))
    port.run(hvpnet, folder / "ported")
    return {"clip": clip, "hvpnet": hvpnet, "ported": folder / "ported"}


def config_with(path: Path | str, **model):
    config = get_config()
    config.model.weights = str(path)
    for key, value in model.items():
        config.model[key] = value
    return config


def load(config, workdir: Path | None = None) -> tuple:
    """The resolved config, the model and its initial parameters."""
    weights = initial.find_initial_weights(config, workdir)
    config = resolve(config, weights.spec)
    model = from_config(config, weights.spec.clip_config)
    return config, model, initial.init_or_load_params(weights, model, config.seed)


@pytest.mark.parametrize("kind", ["hvpnet", "ported"])
def test_every_weight_is_loaded(checkpoints, kind):
    config, model, params = load(config_with(checkpoints[kind]))
    assert model.clip_config == CONFIG and config.model.variant is None
    assert config.model.image_size == 32 and config.model.taps == (1, 2)
    assert config.optimizer.clip_learning_rate == 1e-7 and config.model.freeze_patches
    expected = random_state(CONFIG, head=True)
    for name, x in torch_params.to_torch(params).items():
        np.testing.assert_array_equal(x, expected[name].numpy(), err_msg=name)


def test_clip_is_loaded_and_the_head_is_random(checkpoints, caplog):
    caplog.set_level("INFO")
    _, _, params = load(config_with(checkpoints["clip"]))
    assert "the weights are CLIP's alone" in caplog.text
    state = torch_params.to_torch({"clip": params["clip"]}, param_mapping.NamingScheme(head=False))
    for name, x in random_state(CONFIG).items():
        np.testing.assert_array_equal(state[name], x.numpy(), err_msg=name)
    assert np.abs(params["distill"]["stage_2"]["conv"]["kernel"]).max() > 0


def test_position_embeddings_are_resized_and_logged(checkpoints, caplog):
    caplog.set_level("INFO")
    _, model, params = load(config_with(checkpoints["hvpnet"], image_size=64))
    assert model.clip_config.image_size == 64
    assert params["clip"]["visual"]["position_embedding"].shape == (17, 64)
    assert "2 x 2 patches are resized to 4 x 4" in caplog.text
    with pytest.raises(UsageError, match="image_size=40 is not a multiple of the patch size, 16"):
        load(config_with(checkpoints["hvpnet"], image_size=40))


def test_a_variant_that_contradicts_the_weights_is_refused(checkpoints):
    with pytest.raises(UsageError, match="ViT-B/32 has patch_size 32, the weights have 16; leave"):
        load(config_with(checkpoints["hvpnet"], variant="ViT-B/32"))


def test_missing_weights(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint"):
        load(config_with(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="there is no checkpoint"):
        load(config_with(tmp_path))


def test_a_vocabulary_too_small_for_captions(tmp_path):
    small = write(tmp_path, "hvpnet", random_state(head=True))
    with pytest.raises(
        UsageError, match="its vocabulary has 100 tokens; captions need the 49408 of CLIP's"
    ):
        load(config_with(small))


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command("eval", "--workdir=W")` runs the verb in this process and returns its result."""
    one_device = jax.devices()[:1]  # of the eight simulated ones
    monkeypatch.setattr(jax, "devices", lambda *_: one_device)
    folder = tmp_path / "folder"
    shapes.make_dataset(str(folder), train=8, val=0, test=4)
    common = [f"--config.data.root={folder}", "--config.train.batch_size=8"]
    common += ["--config=configs/folder.py", "--config.eval.batch_size=8"]
    common += ["--config.data.max_frames=2"]

    def run(verb: str, *flags: str) -> dict:
        function, values = main.check([verb, *common, *flags])
        return function(**values)

    return run


def test_a_run_resumes_without_its_initial_checkpoint(checkpoints, command, tmp_path):
    copy = shutil.copy(checkpoints["hvpnet"], tmp_path / "copy.pth")
    flags = [f"--config.model.weights={copy}", f"--workdir={tmp_path / 'run'}"]
    first = command("train", *flags, "--config.train.steps=5")
    card = json.loads((tmp_path / "run/model.json").read_text())
    assert card["pretrained"] and card["clip_config"]["vision_layers"] == 2
    copy.unlink()
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    assert config["model"].pop("activation") == "quick_gelu"
    path.write_text(json.dumps(config))  # as a run of an earlier version wrote it
    again = command("train", *flags, "--config.train.steps=5")
    assert again.step == 5 and again.text_to_video == first.text_to_video
    with pytest.raises(UsageError, match="config.model.activation is gelu, .* says quick_gelu"):
        command("train", *flags, "--config.model.activation=gelu")


def test_eval_takes_a_checkpoint_or_a_ported_workdir(checkpoints, command, tmp_path):
    weights_flag = f"--config.model.weights={checkpoints['hvpnet']}"
    direct = command("eval", weights_flag, f"--workdir={tmp_path / 'a'}")
    ported = command("eval", f"--workdir={checkpoints['ported']}")
    assert direct.text_to_video == ported.text_to_video
    weights_flag = f"--config.model.weights={checkpoints['clip']}"
    clip_alone = command("eval", weights_flag, f"--workdir={tmp_path / 'b'}")
    assert "CLIP's alone" in clip_alone.checkpoint["warning"]


def test_training_resumes_a_ported_checkpoint_only_with_its_moments(checkpoints, command, tmp_path):
    with pytest.raises(UsageError, match="holds weights but no optimizer"):
        command("train", f"--workdir={checkpoints['ported']}")
    state = random_state(CONFIG, head=True)
    torch.save({"state_dict": state, "optimizer": optimizer_of(state, 3)}, tmp_path / "3.pth")
    port.run(tmp_path / "3.pth", tmp_path / "ported")
    for _ in range(2):  # the second run has nothing left to do
        flags = [f"--workdir={tmp_path / 'ported'}", "--config.train.steps=5"]
        assert command("train", *flags).step == 5
    rows = (tmp_path / "ported/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [5]

"""QuickGELU or GELU: what states it, `model.activation`, and how it is kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.base import get_config
from data import tokenizer
from data.errors import UsageError
from hvp_jax.checkpoints.model_card import card_spec, read_card
from hvp_jax.cli.verbs import port
from hvp_jax.config import resolve
from hvp_jax.weights import formats, initial
from hvp_jax.weights.identity.activation import from_names
from tests.helpers.checkpoints import (
    hugging_face_config,
    openai_names,
    random_state,
    sized,
    write,
)

FULL = sized(vocab_size=tokenizer.VOCAB_SIZE)
QUICK, PLAIN = "quick_gelu", "gelu"


@pytest.fixture(scope="module")
def state() -> dict:
    return random_state(FULL)


def save(path: Path, state: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(openai_names(state), path)
    else:
        torch.save(openai_names(state), path)
    return path


def config_with(path: Path | str, activation: str | None = None, **model):
    config = get_config()
    config.model.weights, config.model.activation = str(path), activation
    for key, value in model.items():
        config.model[key] = value
    return config


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("directory", [True, False])
def test_where_nothing_tells_it_is_asked(name, directory, state, tmp_path, caplog):
    path = save(tmp_path / "weights" / name, state)
    source = path.parent if directory else path
    with pytest.raises(
        UsageError, match="nothing states whether it has QuickGELU or GELU"
    ) as error:
        initial.find_initial_weights(config_with(source))
    assert str(path) in str(error.value) and "config.model.activation" in str(error.value)
    assert "\n" not in str(error.value)
    caplog.set_level("INFO")
    for asked in (QUICK, PLAIN):
        weights = initial.find_initial_weights(config_with(source, asked))
        assert weights.spec.clip_config.activation == asked
    assert "GELU, as config.model.activation says" in caplog.text
    assert formats.open_checkpoint(source, activation=PLAIN).format == "open_clip"


def test_port_asks_too_and_takes_a_minimal_config_or_a_format(state, tmp_path):
    source = save(tmp_path / "weights" / "clip.pt", state)
    with pytest.raises(UsageError, match='put its open_clip_config.json beside it, at least {"qui'):
        port.run(source, tmp_path / "ported")
    card = port.run(source, tmp_path / "a", format="openai").card
    assert card["clip_config"]["activation"] == QUICK
    (source.parent / "open_clip_config.json").write_text('{"quick_gelu": false}')
    assert port.run(source, tmp_path / "b").card["clip_config"]["activation"] == PLAIN


@pytest.mark.parametrize(
    ("path", "activation"),
    [
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", QUICK),
        ("vit_b_16-laion400m_e32-55e67d44.pt", PLAIN),
        ("vit_b_32-laion400m.pt", None),
        ("vit_b_32-laion2b_e16-af8dbd0c.pth", PLAIN),
        ("CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_pytorch_model.bin", PLAIN),
        ("CLIP-ViT-B-16-DataComp.XL-s13B-b90K/open_clip_model.safetensors", PLAIN),
        ("CLIP-ViT-B-32-CommonPool.M.clip-s128M-b4K/open_clip_pytorch_model.bin", PLAIN),
        ("models--laion--CLIP-ViT-B-32-x/snapshots/0a1b/open_clip_pytorch_model.bin", PLAIN),
        ("vit_base_patch32_clip_224.openai/open_clip_model.safetensors", QUICK),
        ("vit_base_patch32_clip_quickgelu_224.laion400m_e32/open_clip_model.safetensors", QUICK),
        ("b32_400m.pt", QUICK),  # MetaCLIP's own files
        ("l14_fullcc2.5b.pt", QUICK),
        ("DFN2B-CLIP-ViT-B-16/open_clip_pytorch_model.bin", QUICK),
        ("DFN2B-CLIP-ViT-L-14-39B/open_clip_pytorch_model.bin", PLAIN),
        ("vit_huge_patch14_clip_224.metaclip_altogether/open_clip_model.safetensors", PLAIN),
        ("longclip-B.pt", QUICK),
        ("ViT-L-14-336px.pt", QUICK),
        ("ViT-B-32-mine.pt", None),
        ("laion2b-from-openai/epoch_5.pt", None),
        ("laion2b/finetuned-openai.pt", QUICK),  # the file's name before the folder's
    ],
)
def test_what_names_tell(path, activation, tmp_path):
    found = from_names(tmp_path / path)
    assert (found and found.activation) == activation


def test_a_name_is_an_assumption_that_is_logged_and_replaced(state, tmp_path, caplog):
    source = save(tmp_path / "vit_b_32-laion2b_e16.pth", state)
    caplog.set_level("INFO")
    weights = initial.find_initial_weights(config_with(source))
    assert weights.spec.clip_config.activation == PLAIN
    [line] = [line for line in caplog.messages if "assumed" in line]
    assert "GELU is assumed, because its name is vit_b_32-laion2b_e16.pth" in line
    weights = initial.find_initial_weights(config_with(source, QUICK))
    assert weights.spec.clip_config.activation == QUICK


def test_the_name_of_a_run_tells_only_quickgelu(state, tmp_path):
    """A run named ViT-B-32 has QuickGELU too if it started from OpenAI's weights."""
    module = {f"module.{name}": x for name, x in openai_names(state).items()}
    for name in ("model_ViT-B-32-quickgelu-lr_1e-5", "model_ViT-B-32-lr_1e-5"):
        torch.save({"epoch": 1, "name": name, "state_dict": module}, tmp_path / "epoch_1.pt")
        if "quickgelu" in name:
            source = formats.open_checkpoint(tmp_path / "epoch_1.pt")
            assert source.clip_config.activation == QUICK and "is assumed" in source.notes[0]
        else:
            with pytest.raises(UsageError, match="nothing states"):
                formats.open_checkpoint(tmp_path / "epoch_1.pt")


@pytest.mark.parametrize(
    ("kind", "stated"),
    [("torchscript", QUICK), ("huggingface", QUICK), ("huggingface_bin", PLAIN)]
    + [("open_clip_nested", PLAIN), ("hvpnet", QUICK)],
)
def test_what_a_checkpoint_states_is_not_contradicted(kind, stated, tmp_path):
    source = write(tmp_path / "source", kind, random_state(FULL, head=kind == "hvpnet"), FULL)
    other = PLAIN if stated == QUICK else QUICK
    for asked in (None, stated):
        weights = initial.find_initial_weights(config_with(source, asked))
        assert weights.spec.clip_config.activation == stated
    with pytest.raises(UsageError, match=f"config.model.activation is {other}, .* says {stated};"):
        initial.find_initial_weights(config_with(source, other))


def test_the_config_of_hugging_face_beside_open_clips_file(state, tmp_path):
    source = save(tmp_path / "open_clip_model.safetensors", state)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(FULL, PLAIN)))
    assert formats.open_checkpoint(source).clip_config.activation == PLAIN


def test_clip_alone_with_the_names_of_hvpnet_is_asked(state, tmp_path):
    torch.save(state, tmp_path / "lightning.ckpt")
    with pytest.raises(UsageError, match="nothing states"):
        formats.open_checkpoint(tmp_path / "lightning.ckpt")


@pytest.mark.parametrize("export", ["hvpnet", "huggingface"])
def test_it_survives_port_and_export(export, state, tmp_path):
    source = save(tmp_path / "vit_b_32-laion2b_e16.pth", state)
    port.run(source, tmp_path / "ported")
    spec = card_spec(read_card(tmp_path / "ported"))
    assert spec.clip_config.activation == PLAIN
    card = (tmp_path / "ported/model_card.md").read_text()
    assert "activation gelu" in card and "GELU is assumed, because" in card
    port.run(tmp_path / "ported", tmp_path / "back", export=export)
    assert formats.open_checkpoint(tmp_path / "back").clip_config.activation == PLAIN
    with pytest.raises(UsageError, match=f"is quick_gelu, {tmp_path / 'ported'} says gelu; leave"):
        initial.find_initial_weights(config_with(tmp_path / "ported", QUICK))
    config = config_with("", QUICK)  # a run that resumes in that workdir
    with pytest.raises(UsageError, match="says gelu; leave the key out"):
        initial.find_initial_weights(config, tmp_path / "ported")


def test_from_scratch_the_key_sets_it():
    for asked, expected in ((None, QUICK), (PLAIN, PLAIN)):
        config = config_with("", asked, variant="tiny")
        weights = initial.find_initial_weights(config)
        assert weights.spec.clip_config.activation == expected
        assert resolve.resolve(config, weights.spec).model.activation == expected
        assert resolve.resolve(config).model.activation == expected

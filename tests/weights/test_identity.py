"""Checkpoints of other models and other tokenizers are refused by name; CLIP's own are read."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from data import tokenizer
from data.errors import DataError
from hvp_jax.weights import formats
from tests.helpers.checkpoints import (
    SMALL,
    hugging_face_config,
    nested_names,
    random_state,
    sized,
    write,
)

FULL = sized(vocab_size=tokenizer.VOCAB_SIZE)


def refusal(source: Path) -> str:
    with pytest.raises(DataError) as error:
        formats.open_checkpoint(source)
    assert "\n" not in str(error.value) and str(source) in str(error.value)
    return str(error.value)


def change_json(path: Path, **changes) -> None:
    """Replaces entries of a JSON file; a dictionary's entries are added to the one there."""
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def full() -> dict:
    return random_state(FULL)


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("metaclip_2", "MetaCLIP 2 model: its tokenizer is XLM-V's, of 901,629 tokens"),
        ("siglip", "a SigLIP model: sigmoid loss, another text tower and tokenizer"),
        ("siglip2", "a SigLIP 2 model"),
        ("clipseg", "a CLIPSeg model"),
        ("chinese_clip", "a Chinese CLIP"),
        ("altclip", "an AltCLIP"),
        ("groupvit", "a GroupViT model"),
        ("xclip", "an X-CLIP model"),
        ("blip", "a BLIP model"),
        ("clap", "a CLAP model"),
        ("clip_text_model", "the text tower of a CLIP alone"),
        ("whisper", "not CLIP"),
    ],
)
def test_another_model_type_is_named(model_type, named, tmp_path):
    """By its config.json, whether or not its tensors are named as CLIP's."""
    source = write(tmp_path, "huggingface", random_state())
    change_json(source / "config.json", model_type=model_type)
    message = refusal(source)
    assert f"model_type {model_type} is " in message and named in message
    save_file({"encoder.weight": torch.zeros(3)}, source / "model.safetensors")
    assert refusal(source) == message


@pytest.mark.parametrize(
    ("library", "named"),
    [("MetaClip2", "MetaCLIP 2"), ("Siglip", "SigLIP"), ("CLIPSeg", "CLIPSeg")],
)
def test_models_that_transformers_writes(library, named, tmp_path):
    config = hugging_face_config(sized(vocab_size=300))
    kind = getattr(transformers, f"{library}Config")
    sizes = {name: config[name] for name in ("text_config", "vision_config")}
    for tower in sizes.values():
        tower["projection_dim"] = tower["projection_size"] = 32
    getattr(transformers, f"{library}Model")(kind(**sizes)).save_pretrained(tmp_path)
    assert named in refusal(tmp_path)


def test_eva_clip_has_the_model_type_of_clip(tmp_path):
    source = write(tmp_path, "huggingface", random_state())
    change_json(source / "config.json", architectures=["EvaCLIPModel"])
    assert "EvaCLIPModel is an EVA-CLIP model" in refusal(source)
    change_json(source / "config.json", architectures=["CLIPModel"])
    assert formats.open_checkpoint(source).clip_config == SMALL


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("visual.trunk.patch_embed.proj.weight", "image tower of timm's"),
        ("text.transformer.embeddings.word_embeddings.weight", "XLM-RoBERTa"),
        ("visual.layer1.0.conv1.weight", "a CLIP with a ResNet"),
        ("visual.blocks.0.norm1.weight", "EVA-CLIP"),
        ("module.bert.embeddings.word_embeddings.weight", "a Chinese CLIP"),
    ],
)
def test_without_a_config_a_tensor_names_the_model(name, named, tmp_path):
    prefix = "module." if name.startswith("module.") else ""
    tensors = {prefix + "logit_scale": torch.ones(()), name: torch.zeros(3)}
    torch.save(tensors, tmp_path / "model.pt")
    assert named in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("kind", ["state_dict", "huggingface", "open_clip_nested", "hvpnet"])
def test_a_larger_vocabulary_is_refused(kind, tmp_path):
    config = sized(vocab_size=60000)
    source = write(tmp_path, kind, random_state(config, head=kind == "hvpnet"), config)
    message = refusal(source)
    assert "has 60,000 tokens" in message and "CLIP's BPE of 49,408" in message


def test_rows_added_to_clips_vocabulary_are_accepted_only_with_its_vocabulary(tmp_path):
    config = sized(vocab_size=49410)
    source = write(tmp_path, "huggingface", random_state(config), config)
    assert "has 49,410 tokens" in refusal(source)
    (source / "vocab.json").write_text(json.dumps(clips_words()))
    assert formats.open_checkpoint(source).clip_config.vocab_size == 49410


def clips_words() -> dict[str, int]:
    words = ("the", "photo", "running", "guitar", "kitchen", "dog")
    return {f"{word}</w>": tokenizer.encode(word)[0] for word in words}


@pytest.mark.parametrize("kind", ["huggingface", "open_clip_nested"])
def test_a_tokenizer_beside_the_weights(kind, full, tmp_path):
    source = write(tmp_path, kind, full, FULL)
    for name in ("CLIPTokenizer", "CLIPTokenizerFast"):
        (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert formats.open_checkpoint(source).clip_config.vocab_size == 49408
    for name in ("XLMRobertaTokenizer", "BertTokenizer", "T5TokenizerFast"):
        (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert f"tokenizer_class is {name}; captions can only" in refusal(source)
    (source / "tokenizer_config.json").unlink()
    for name, wrap in (
        ("vocab.json", lambda ids: ids),
        ("tokenizer.json", lambda ids: {"model": {"type": "BPE", "vocab": ids}}),
    ):
        (source / name).write_text(json.dumps(wrap(clips_words())))
        assert formats.open_checkpoint(source).clip_config.vocab_size == 49408
        shifted = {word: i + 1 for word, i in clips_words().items()}
        (source / name).write_text(json.dumps(wrap(shifted)))
        assert f"{name}: is another vocabulary" in refusal(source)
        (source / name).unlink()
    unigram = {"model": {"type": "Unigram", "vocab": [["<s>", 0.0]]}}
    (source / "tokenizer.json").write_text(json.dumps(unigram))
    assert "holds no byte-pair tokens" in refusal(source)


def test_files_of_another_model_beside_a_single_file_are_not_read(full, tmp_path):
    source = write(tmp_path, "state_dict", full)
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert formats.open_checkpoint(source).clip_config.vocab_size == 49408


def test_the_end_of_text(full, tmp_path):
    """`transformers` pools at the argmax for the 2 of old configs, else at the first such id."""
    source = write(tmp_path, "huggingface", full, FULL)
    for end in (2, 49407, None):
        change_json(source / "config.json", text_config={"eos_token_id": end})
        assert formats.open_checkpoint(source).clip_config.vocab_size == 49408
    change_json(source / "config.json", text_config={"eos_token_id": 1})
    assert "text_config.eos_token_id is 1; the text feature can only be read at" in refusal(source)


def open_clip_folder(folder: Path, state: dict, **model) -> Path:
    save_file(nested_names(state), folder / "open_clip_model.safetensors")
    model = {"embed_dim": 32, "vision_cfg": {}, "text_cfg": {}, **model}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    return folder


@pytest.mark.parametrize(
    ("group", "values", "named"),
    [
        ("text_cfg", {"hf_tokenizer_name": "xlm-roberta-base"}, "tokenizer is xlm-roberta-base"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "its text tower is roberta-base"),
        ("text_cfg", {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, "is a SigLIP model"),
        ("vision_cfg", {"timm_model_name": "eva02_base"}, "its image tower is eva02_base"),
        ("vision_cfg", {"timm_model_name": "vit_base_siglip_224"}, "is a SigLIP model"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type is 'avg'"),
        ("vision_cfg", {"global_average_pool": True}, "vision_cfg.global_average_pool is True"),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6}}, "vision_cfg.norm_kwargs.eps is 1e-06"),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "text_cfg.act_kwargs is"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask is True"),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type is last; the text feature"),
        ("text_cfg", {"pool_type": "eos"}, "text_cfg.pool_type is eos with eos_id 2"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "text_cfg.tokenizer_kwargs"),
        ("multimodal_cfg", {"width": 512}, "is a CoCa model"),
    ],
)
def test_another_tower_or_tokenizer_in_open_clips_config(group, values, named, tmp_path):
    source = open_clip_folder(tmp_path, random_state(), **{group: values})
    message = refusal(source)
    assert named in message and "open_clip_config.json" in message


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("text_cfg", {"hf_tokenizer_name": "openai/clip-vit-large-patch14"}),
        ("text_cfg", {"pool_type": "argmax", "proj_type": "linear", "norm_kwargs": {}}),
        ("text_cfg", {"pool_type": "eos", "eos_id": 49407}),
        ("vision_cfg", {"pool_type": "tok", "timm_model_name": None, "head_width": 64}),
    ],
)
def test_open_clips_configs_that_are_clips(group, values, tmp_path):
    source = open_clip_folder(tmp_path, random_state(), **{group: values})
    assert formats.open_checkpoint(source).clip_config.activation == "gelu"


def test_an_open_clip_config_that_is_not_one(tmp_path):
    source = open_clip_folder(tmp_path, random_state())
    for text in ('{"model_cfg": 3}', '{"model_cfg": {"text_cfg": [1]}}'):
        (source / "open_clip_config.json").write_text(text)
        assert "has no vision_cfg and text_cfg" in refusal(source)

"""Other models than CLIP, refused by the name that their files give them."""

from collections.abc import Iterable
from typing import Any

from data.errors import DataError
from data.storage.path import Path
from hvp_jax.weights.identity.beside import HUGGING_FACE_CONFIG, read_if_there

ONLY_CLIP = "only CLIP with a ViT, and captions in CLIP's BPE of 49,408 tokens, can be computed"
SIGLIP = "a SigLIP model: sigmoid loss, another text tower and tokenizer"
MODEL_TYPES = {  # `model_type` of a config.json: what it is
    "align": "an ALIGN model: EfficientNet and BERT",
    "altclip": "an AltCLIP: its text tower and tokenizer are XLM-RoBERTa's",
    "blip": "a BLIP model: its text tower and tokenizer are BERT's",
    "blip-2": "a BLIP-2 model: a querying transformer and a language model",
    "bridgetower": "a BridgeTower model: its text tower and tokenizer are RoBERTa's",
    "chinese_clip": "a Chinese CLIP: its text tower and tokenizer are BERT's",
    "clap": "a CLAP model: audio and text",
    "clip_text_model": "the text tower of a CLIP alone",
    "clip_vision_model": "the image tower of a CLIP alone",
    "clipseg": "a CLIPSeg model: CLIP with a decoder of masks",
    "flava": "a FLAVA model: its text tower and tokenizer are BERT's",
    "groupvit": "a GroupViT model: another image tower",
    "jina_clip": "a Jina CLIP: other towers and tokenizer",
    "metaclip_2": "a MetaCLIP 2 model: its tokenizer is XLM-V's, of 901,629 tokens",
    "owlv2": "an OWLv2 model: a detector of objects",
    "owlvit": "an OWL-ViT model: a detector of objects",
    "siglip": SIGLIP,
    "siglip2": SIGLIP.replace("SigLIP", "SigLIP 2"),
    "vision-text-dual-encoder": "a pair of two other models",
    "xclip": "an X-CLIP model: its image tower mixes the frames of a video",
}
ARCHITECTURES = {"EvaCLIPModel": "an EVA-CLIP model: another image tower"}
TENSORS = {  # beginning of a tensor's name: what has it
    "visual.trunk.": "an open_clip model with an image tower of timm's, such as SigLIP's or EVA's",
    "text.transformer.embeddings.": "an open_clip model with a text tower of Hugging Face's, "
    "such as XLM-RoBERTa's",
    "visual.layer1.": "a CLIP with a ResNet",
    "visual.blocks.": "an EVA-CLIP model: another image tower",
    "vision_model.head.": SIGLIP,
    "text_model.head.": SIGLIP,
    "text_decoder.": "a model that writes captions, such as CoCa or BLIP",
    "bert.": "a Chinese CLIP: its text tower and tokenizer are BERT's",
    "audio_model.": "a CLAP model: audio and text",
}


def refuse_other_config(folder: Path) -> None:
    """Raises DataError if the config.json in a folder of weights names another model."""
    path = folder / HUGGING_FACE_CONFIG
    config = read_if_there(path)
    for name in _strings(config.get("architectures")):
        if name in ARCHITECTURES:
            raise DataError(f"{path}: {name} is {ARCHITECTURES[name]}; {ONLY_CLIP}")
    kind = config.get("model_type", "clip")
    if kind != "clip":
        what = MODEL_TYPES.get(kind, "not CLIP") if isinstance(kind, str) else "not CLIP"
        raise DataError(f"{path}: model_type {kind} is {what}; {ONLY_CLIP}")


def _strings(value: Any) -> list[str]:
    return [x for x in value if isinstance(x, str)] if isinstance(value, list) else []


def refuse_other_tensors(path: Path, names: Iterable[str]) -> None:
    """Raises DataError if the name of a tensor belongs to another model."""
    for name in names:
        for beginning, what in TENSORS.items():
            if name.startswith(beginning):
                raise DataError(f"{path}: is {what} (tensor {name}); {ONLY_CLIP}")

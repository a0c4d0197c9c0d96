"""Whether a checkpoint's tokenizer is CLIP's, the only one that captions are encoded with."""

from typing import Any

from data import tokenizer
from data.errors import DataError
from data.storage.path import Path
from hvp_jax.weights.identity.beside import read_if_there, section

ONLY_BPE = f"captions can only be tokenized with CLIP's BPE of {tokenizer.VOCAB_SIZE:,}"
# Classes that hold CLIP's BPE; the generic ones are judged by their vocabulary.
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Words of one token in CLIP's vocabulary; any other vocabulary gives them other ids.
PROBES = ("the", "photo", "running", "guitar", "kitchen")
# CLIP's end of text, or the 2 that older configs have: `transformers` then pools at the argmax.
END_IDS = (None, 2, tokenizer.END)


def refuse_other_tokenizer(path: Path, folder: Path | None, vocab_size: int) -> None:
    """Raises DataError if captions of this model are not tokenized by CLIP's BPE.

    `folder`: where the model's tokenizer is, if its files describe the weights. A vocabulary
    smaller than CLIP's is that of a model for tests; captions are refused for it elsewhere.
    """
    is_clips = False
    if folder:
        _refuse_class(folder / "tokenizer_config.json")
        is_clips = vocab_size >= tokenizer.VOCAB_SIZE and _has_clips_vocabulary(folder)
    if vocab_size > tokenizer.VOCAB_SIZE and not is_clips:  # else rows were added to CLIP's
        raise DataError(
            f"{path}: its vocabulary has {vocab_size:,} tokens, as a MetaCLIP 2 or another "
            f"multilingual model has; {ONLY_BPE}"
        )


def _refuse_class(path: Path) -> None:
    name = read_if_there(path).get("tokenizer_class")
    if isinstance(name, str) and name not in CLASSES:
        raise DataError(f"{path}: tokenizer_class is {name}; {ONLY_BPE}")


def _has_clips_vocabulary(folder: Path) -> bool:
    """Whether there is a vocabulary and it is CLIP's. DataError if it is another."""
    found = False
    for name in ("vocab.json", "tokenizer.json"):
        path = folder / name
        if not path.is_file():
            continue
        content = read_if_there(path)
        ids: Any = content if name == "vocab.json" else section(content, "model").get("vocab")
        if not isinstance(ids, dict):
            raise DataError(f"{path}: holds no byte-pair tokens; {ONLY_BPE}")
        for word in PROBES:
            if ids.get(f"{word}</w>") != tokenizer.encode(word)[0]:
                raise DataError(f"{path}: is another vocabulary, of {len(ids):,}; {ONLY_BPE}")
        found = True
    return found


def refuse_other_end(text_config: dict[str, Any], path: Path) -> None:
    """Raises DataError if a Hugging Face CLIP reads the text feature at another token."""
    end = text_config.get("eos_token_id")
    size = text_config.get("vocab_size", tokenizer.VOCAB_SIZE)
    if size == tokenizer.VOCAB_SIZE and end not in END_IDS:
        raise DataError(
            f"{path}: text_config.eos_token_id is {end}; the text feature can only be read at "
            f"CLIP's end of text, {tokenizer.END}"
        )

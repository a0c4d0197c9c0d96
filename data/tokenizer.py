"""Captions to CLIP's byte-pair tokens."""

import functools
import html
from collections.abc import Sequence

import ftfy
import numpy as np
from instant_clip_tokenizer import Tokenizer

from data.errors import DataError, UsageError

VOCAB_SIZE = 49408
START = 49406
END = 49407


@functools.cache
def _tokenizer() -> Tokenizer:
    # Created on first use, not on import: it cannot be pickled, so every worker process that
    # uses this module creates its own (60 ms).
    return Tokenizer()


def encode(caption: str) -> list[int]:
    """The tokens of a caption, without start and end of text: ids below `START`.

    The text is cleaned as in CLIP: fixed by ftfy, then HTML is unescaped twice.
    `<|startoftext|>` and `<|endoftext|>` in a caption are ordinary text. The original makes
    special tokens of them, which moves the position that the sentence's feature is read from
    (the greatest id).

    Raises DataError if the caption is not a `str`.
    """
    if not isinstance(caption, str):
        raise DataError(f"a caption must be text, got {type(caption).__name__}: {caption!r:.80}")
    return _tokenizer().encode(html.unescape(html.unescape(ftfy.fix_text(caption))))


def decode(token: int) -> str:
    """What a token stands for; a space at its end says that a word ends there."""
    return _tokenizer().decode([token])


def tokenize(captions: Sequence[str], words: int) -> tuple[np.ndarray, np.ndarray]:
    """N captions as ids [N, words] int32 and mask [N, words] bool.

    A row is `START`, at most `words - 2` tokens, `END`, then zeros; the mask is
    true from `START` to `END`.

    Raises UsageError if `words` leaves no room for a token, DataError as `encode` does.
    """
    if words < 3:
        raise UsageError(f"words is {words}: at least 3 are needed, for start, one token and end")
    if isinstance(captions, str):
        raise TypeError("captions must be a sequence of captions, not one caption")
    ids = np.zeros((len(captions), words), np.int32)  # [N, W]
    for row, caption in zip(ids, captions, strict=True):
        tokens = [START, *encode(caption)[: words - 2], END]
        row[: len(tokens)] = tokens
    # Id 0 is the token "!" inside a word, so the length is the position of END, not the first zero.
    lengths = ids.argmax(axis=1) + 1  # END is the greatest id
    return ids, np.arange(words) < lengths[:, None]

"""Tokens equal those of the original CLIP, except for special tokens within a caption."""

import concurrent.futures
import json
import multiprocessing
import pickle
import random

import numpy as np
import pytest

from data import tokenizer
from data.errors import DataError, UsageError
from tests.helpers.command import GOLDEN

CASES = json.loads((GOLDEN / "tokens.json").read_text())
MARKERS = ("<|endoftext|>", "<|startoftext|>")


@pytest.mark.parametrize("case", CASES, ids=[ascii(case["caption"])[:24] for case in CASES])
def test_tokens_equal_the_reference(case):
    assert tokenizer.encode(case["caption"]) == case["tokens"]
    for words in (12, 24, 32):
        ids, mask = tokenizer.tokenize([case["caption"]], words)
        assert ids.tolist() == [case[f"ids_{words}"]]
        assert mask.sum() == min(len(case["tokens"]), words - 2) + 2


def test_html_is_unescaped_twice():
    # ftfy does not unescape entities in a text that contains "<".
    assert tokenizer.encode("< &amp;lt; cats") == tokenizer.encode("< < cats")
    assert tokenizer.encode("< &amp;amp;lt; cats") != tokenizer.encode("< < cats")


def escaped(text: str, rng: random.Random) -> str:
    """The text with some characters as HTML entities, possibly escaped once more."""
    kinds = ("{0}", "&#{1};", "&#x{1:x};", "&amp;#{1};")
    named = {"<": "&lt;", ">": "&gt;", "|": "&vert;"}
    out = (rng.choice(kinds).format(c, ord(c)) for c in text)
    return "".join(named[c] if c in named and rng.random() < 0.3 else c for c in out)


def test_special_tokens_in_a_caption_are_ordinary_text():
    rng = random.Random(0)
    captions = [*MARKERS, *(m.upper() for m in MARKERS), "&lt;|endoftext|&gt;", "<|EndOfText|>"]
    captions += ["&amp;lt;|startoftext|&amp;gt;", "\uff1c|endoftext|\uff1e", "a<|endoftext|>b"]
    for _ in range(500):
        marker = "".join(rng.choice((c.lower(), c.upper())) for c in rng.choice(MARKERS))
        pieces = [rng.choice(("a dog", "", " ", "\t", "<", "|>", "\u200b")), escaped(marker, rng)]
        captions.append("".join(rng.choices(pieces, k=rng.randint(1, 4))))
    assert sum(max(tokenizer.encode(c), default=0) >= tokenizer.START for c in captions) == 0
    ids, mask = tokenizer.tokenize(captions, 40)
    assert ((ids == tokenizer.END).sum(axis=1) == 1).all()
    assert ((ids == tokenizer.START).sum(axis=1) == 1).all()
    assert (ids.argmax(axis=1) == mask.sum(axis=1) - 1).all()


def test_any_characters_are_encoded_within_the_vocabulary():
    rng = random.Random(1)
    ranges = ((0, 0x80), (0x80, 0x3000), (0xD800, 0xE000), (0x1F300, 0x1FA00), (0, 0x110000))
    for _ in range(300):
        low, high = rng.choice(ranges)
        text = "".join(chr(rng.randrange(low, high)) for _ in range(20))
        assert all(0 <= token < tokenizer.START for token in tokenizer.encode(text))


def test_mask_includes_tokens_of_id_zero():
    caption = "!?!?!!a!!!?"
    assert tokenizer.encode("!a") == tokenizer.encode("!a ") and 0 in tokenizer.encode(caption)
    ids, mask = tokenizer.tokenize([caption, ""], 16)
    assert mask[0].sum() == len(tokenizer.encode(caption)) + 2
    assert mask[1].tolist() == [True, True] + [False] * 14
    assert ids.dtype == np.int32 and mask.dtype == bool


def test_no_captions():
    ids, mask = tokenizer.tokenize([], 5)
    assert ids.shape == mask.shape == (0, 5)


def test_tokens_are_within_the_vocabulary():
    assert tokenizer.VOCAB_SIZE == tokenizer.END + 1 == tokenizer.START + 2


@pytest.mark.parametrize("caption", [None, float("nan"), b"a dog", ["a dog"]])
def test_a_caption_must_be_a_string(caption):
    with pytest.raises(DataError, match=f"must be text, got {type(caption).__name__}"):
        tokenizer.tokenize([caption], 5)


@pytest.mark.parametrize("words", [2, 0, -1])
def test_too_few_words(words):
    with pytest.raises(UsageError, match="at least 3"):
        tokenizer.tokenize(["a dog"], words)


def test_a_single_string_is_rejected():
    with pytest.raises(TypeError):
        tokenizer.tokenize("a dog", 5)


def test_works_from_threads_and_other_processes():
    expected = tokenizer.encode("a dog runs")
    assert pickle.loads(pickle.dumps(tokenizer.encode))("a dog runs") == expected
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(tokenizer.encode, ["a dog runs"] * 8)) == [expected] * 8
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(tokenizer.encode, "a dog runs").result(timeout=60) == expected

"""From a model, a text and the frames of a video to an `Explanation` of their score."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from data import tokenizer
from data.records import Segment
from hvp_jax.models import similarity
from hvp_jax.models.hvpnet import HVPNet
from hvp_jax.models.score_weights import normalize_token_weights, uniform_token_weights
from hvp_jax.retrieval.explanation import Answer, Explanation, Frame, Member, Patch, Word
from hvp_jax.retrieval.observe import Observed
from hvp_jax.retrieval.trace import GONE, halved, trace


@dataclasses.dataclass(frozen=True)
class Pair:
    """A text and a clip, as a model sees them."""

    model: HVPNet
    text: similarity.TextFeatures  # of one text
    labels: Sequence[str]  # of the words that have a weight
    observed: Observed
    num_frames: int  # that count: more than the clip has where padding is not masked

    @functools.cached_property
    def terms(self) -> tuple[str, ...]:
        return similarity.terms_of(self.observed.features)

    @functools.cached_property
    def tap_weights(self) -> dict[str, Float[np.ndarray, " l"]]:
        """The weights of the taps in each term."""
        weights = self.observed.features.tap_weights
        if weights is None:
            return {term: np.ones(len(self.model.taps)) for term in self.terms}
        return dict(zip(self.terms, np.asarray(weights[0], np.float64), strict=True))

    @property
    def frame_tokens(self) -> int:
        """How many tokens a frame has: its class token and its patches."""
        config = self.model.clip_config
        return (config.image_size // config.patch_size) ** 2 + 1

    @functools.cached_property
    def maps(self) -> list[Int[np.ndarray, "l n"]]:
        """The maps of `trace`; none if the model uses no patches."""
        if self.observed.distilled is None:
            return []
        stages = [{k: np.asarray(v) for k, v in stage.items()} for stage in self.observed.stages]
        count, taps = self.num_frames * self.frame_tokens, len(self.model.taps)
        return trace(self.model.method, stages, count, taps)

    def products(self, x: Float[Any, "l n d"]) -> Float[np.ndarray, "l n"]:
        """Inner products with the sentence."""
        sentence = np.asarray(self.text.sentence, np.float64)[0]
        return np.asarray(x, np.float64) @ sentence

    def weights(
        self, raw: Float[Any, "l n"] | None, valid: Bool[np.ndarray, " n"]
    ) -> Float[np.ndarray, "l n"]:
        """The weights of tokens, as `HVPNet` makes them of what a network says."""
        valid = np.tile(valid, (len(self.model.taps), 1))
        if raw is None:
            return np.asarray(uniform_token_weights(jnp.asarray(valid), jnp.float32))
        weights = normalize_token_weights(raw, jnp.asarray(valid), self.model.normalize)
        return np.asarray(weights)


def labels_of(tokens: Sequence[int], count: int) -> list[str]:
    """Names of the words of a text, which are `count` with start, end and padding."""
    pieces = [tokenizer.decode(token) for token in tokens]
    # A piece that does not end a word has no space at its end.
    inside = [piece.rstrip() if piece.endswith(" ") else f"{piece}-" for piece in pieces[:-1]]
    names = ["[start]", *inside, *(piece.rstrip() for piece in pieces[-1:]), "[end]"]
    return [*names, *["[padding]"] * (count - len(names))]


def explain(pair: Pair, *, query: str, video: Segment, images: np.ndarray) -> Explanation:
    """The explanation of a pair's score; `images` are the frames of the clip."""
    taps = pair.model.taps
    words, patches = _words_and_patches(pair)
    frames = _frames(pair)
    parts = {}
    for term in pair.terms:
        by_tap = dict.fromkeys(taps, 0.0)
        each: list[Patch | Frame] = [*patches, *frames]
        for part in each:
            by_tap[part.tap] += part.contributions.get(term, 0.0)
        if term == "word_patch":
            for answer in (answer for word in words for answer in word.answers):
                by_tap[answer.tap] += answer.contribution
        parts[term] = tuple(by_tap.values())
    maps = [x.reshape(len(taps), -1, pair.frame_tokens)[:, : len(images)] for x in pair.maps[1:]]
    return Explanation(
        text=query,
        video=video,
        score=sum(sum(part) for part in parts.values()),
        taps=taps,
        parts=parts,
        tap_weights={term: tuple(w.tolist()) for term, w in pair.tap_weights.items()},
        words=words,
        patches=patches,
        frames=frames,
        concepts=tuple(maps),
        images=images,
    )


def _words_and_patches(pair: Pair) -> tuple[tuple[Word, ...], tuple[Patch, ...]]:
    """The parts of word-patch and sentence-patch."""
    if pair.observed.distilled is None:
        return (), ()
    count = pair.num_frames * pair.frame_tokens
    for _ in pair.observed.stages:
        count = halved(count)
    valid = np.arange(pair.observed.distilled.shape[1]) < count
    unit = similarity.l2_normalize(pair.observed.distilled)[:, :count]
    weights = pair.weights(pair.observed.raw_patch_weights, valid)[:, :count]
    given: dict[str, np.ndarray] = {}
    words: tuple[Word, ...] = ()
    nearest = None
    if "word_patch" in pair.terms:
        tap_weights = pair.tap_weights["word_patch"]
        cosines = _cosines(pair, unit)  # [L, W, M]
        words = _words(pair, cosines)
        nearest = cosines.argmax(axis=1)  # [L, M]
        given["word_patch"] = tap_weights[:, None] * weights * cosines.max(axis=1) / 2
    if "sentence_patch" in pair.terms:
        tap_weights = pair.tap_weights["sentence_patch"]
        given["sentence_patch"] = tap_weights[:, None] * weights * pair.products(unit)
    patches = []
    for row, tap in enumerate(pair.model.taps):
        members = _members(pair.maps[-1][row], count, pair.frame_tokens)
        for i in range(count):
            patches.append(
                Patch(
                    tap=tap,
                    number=i,
                    weight=float(weights[row, i]),
                    word=None if nearest is None else int(nearest[row, i]),
                    contributions={term: float(x[row, i]) for term, x in given.items()},
                    members=members[i],
                )
            )
    return words, tuple(patches)


def _cosines(pair: Pair, unit: Float[jax.Array, "l m d"]) -> Float[np.ndarray, "l w m"]:
    """Of words and distilled patches, in the precision in which they are scored."""
    assert pair.text.words is not None
    dtype = pair.model.dtype
    words = jnp.asarray(pair.text.words[0, : len(pair.labels)])
    product = jnp.einsum("wd,lmd->lwm", words.astype(dtype), unit.astype(dtype))
    return np.asarray(product, np.float64)


def _words(pair: Pair, cosines: Float[np.ndarray, "l w m"]) -> tuple[Word, ...]:
    assert pair.text.word_weights is not None
    weights = np.asarray(pair.text.word_weights[0], np.float64)
    patch, best = cosines.argmax(axis=2), cosines.max(axis=2)  # [L, W]
    given = pair.tap_weights["word_patch"][:, None] * weights[: len(pair.labels)] * best / 2
    return tuple(
        Word(
            label,
            float(weights[i]),
            tuple(
                Answer(tap, int(patch[row, i]), float(best[row, i]), float(given[row, i]))
                for row, tap in enumerate(pair.model.taps)
            ),
        )
        for i, label in enumerate(pair.labels)
    )


def _members(
    concepts: Int[np.ndarray, " n"], count: int, frame_tokens: int
) -> list[tuple[Member, ...]]:
    """The patches of frames that each of `count` distilled patches consists of."""
    members: list[list[Member]] = [[] for _ in range(count)]
    side = round((frame_tokens - 1) ** 0.5)
    for token in np.flatnonzero(concepts != GONE).tolist():
        frame, place = divmod(token, frame_tokens)
        row, column = divmod(place - 1, side) if place else (None, None)
        members[concepts[token]].append(Member(frame, row, column))
    return [tuple(x) for x in members]


def _frames(pair: Pair) -> tuple[Frame, ...]:
    """The parts of sentence-frame and sentence-clip."""
    if pair.observed.frames is None:
        return ()
    valid = np.arange(pair.observed.frames.shape[1]) < pair.num_frames
    unit = similarity.l2_normalize(pair.observed.frames)
    products, given = pair.products(unit), {}
    weights = np.tile(valid / pair.num_frames, (len(unit), 1))
    if "sentence_clip" in pair.terms:
        mean = np.einsum("lt,ltd->ld", weights, np.asarray(unit, np.float64))
        length = np.maximum(np.linalg.norm(mean, axis=1), np.finfo(np.float32).tiny)
        tap_weights = pair.tap_weights["sentence_clip"] / length
        given["sentence_clip"] = tap_weights[:, None] * weights * products
    if "sentence_frame" in pair.terms:
        weights = pair.weights(pair.observed.raw_frame_weights, valid)
        given["sentence_frame"] = pair.tap_weights["sentence_frame"][:, None] * weights * products
    return tuple(
        Frame(
            tap=tap,
            number=i,
            weight=float(weights[row, i]),
            contributions={term: float(x[row, i]) for term, x in given.items()},
        )
        for row, tap in enumerate(pair.model.taps)
        for i in range(pair.num_frames)
    )

"""An explanation as JSON for the page: what it draws, without what it does not."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from hvp_jax.retrieval.explanation import Explanation
from hvp_jax.search.app.openapi import NUMBER, TEXT, list_of, object_of

QUALITY = 85  # of WebP
NOWHERE = -1  # the concept of a patch that was not kept

NUMBERS = list_of(NUMBER)
CONCEPTS = list_of({"type": "integer"}, "by patch: frames in order, each row by row; -1: dropped")
WORD = object_of(
    "a token of the query; the lists are by tap",
    text=TEXT,
    weight=NUMBER,
    contribution=NUMBER | {"description": "to word_patch, over all taps"},
    contributions=NUMBERS,
    cosines=NUMBERS,
    concepts=list_of({"type": "integer"}, "the concept that is nearest to the word"),
)
SCHEMA = object_of(
    "`parts` add up to `score`",
    id=TEXT,
    query=TEXT,
    score=NUMBER,
    taps=list_of({"type": "integer"}, "layers of the vision tower"),
    terms=list_of(TEXT),
    parts=list_of(NUMBERS, "by term and tap"),
    words=list_of(WORD),
    sentence=list_of(NUMBERS, "by tap and concept: what it gave to sentence_patch"),
    frame_parts=list_of(NUMBERS, "by tap and frame: what it gave to the terms of frames"),
    frames=list_of(TEXT, "pictures, as data: addresses"),
    grid=list_of({"type": "integer"}, "rows and columns of patches in a frame"),
    concepts=list_of(CONCEPTS, "by tap: the concepts that are scored"),
    stages=list_of(list_of(CONCEPTS), "by tap and stage of distillation"),
)


def to_json(explanation: Explanation) -> dict[str, Any]:
    """The answer of /api/explain but for the id and the query."""
    taps, frames = explanation.taps, explanation.images
    concepts, grid = _concepts(explanation)
    patches = [[x for x in explanation.patches if x.tap == tap] for tap in taps]
    frame_parts = [[x for x in explanation.frames if x.tap == tap][: len(frames)] for tap in taps]
    return {
        "score": explanation.score,
        "taps": list(taps),
        "terms": list(explanation.parts),
        "parts": [list(part) for part in explanation.parts.values()],
        "words": [
            {
                "text": word.word,
                "weight": word.weight,
                "contribution": word.contribution,
                "contributions": [answer.contribution for answer in word.answers],
                "cosines": [answer.cosine for answer in word.answers],
                "concepts": [answer.patch for answer in word.answers],
            }
            for word in explanation.words
        ],
        "sentence": [[x.contributions.get("sentence_patch", 0.0) for x in of] for of in patches],
        "frame_parts": [[sum(x.contributions.values()) for x in of] for of in frame_parts],
        "frames": [_picture(frame) for frame in frames],
        "grid": grid,
        "concepts": concepts.tolist(),
        "stages": [
            [stage[i, :, 1:].reshape(-1).tolist() for stage in explanation.concepts]
            for i in range(len(taps))
        ],
    }


def _concepts(explanation: Explanation) -> tuple[np.ndarray, list[int]]:
    """The concept of every patch [taps, frames * rows * columns], and rows and columns."""
    taps, count = explanation.taps, len(explanation.images)
    members = [
        (taps.index(patch.tap), member.frame, member.row, member.column, patch.number)
        for patch in explanation.patches
        for member in patch.members
        if member.row is not None and member.column is not None and member.frame < count
    ]
    if not members:
        return np.zeros((len(taps), 0), int), [0, 0]
    tap, frame, row, column, number = np.array(members).T
    grid = [int(row.max()) + 1, int(column.max()) + 1]
    concepts = np.full((len(taps), count, *grid), NOWHERE)
    concepts[tap, frame, row, column] = number
    return concepts.reshape(len(taps), -1), grid


def _picture(frame: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "webp", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"

"""What the score of a text and a video consists of."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from data.records import Segment
from data.storage.path import PathLike
from hvp_jax.monitoring.json_files import to_json_types


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a word found at a tap: the distilled patch that is nearest to it."""

    tap: int
    patch: int  # the number of the distilled patch at this tap
    cosine: float
    contribution: float  # half of weight x cosine, times the weight of the tap


@dataclasses.dataclass(frozen=True)
class Word:
    """A token of the text; `word` ends in "-" where the word goes on in the next token."""

    word: str
    weight: float
    answers: tuple[Answer, ...]  # one a tap

    @property
    def contribution(self) -> float:
        """To word-patch, over all taps."""
        return sum(answer.contribution for answer in self.answers)


@dataclasses.dataclass(frozen=True)
class Member:
    """A patch of a frame; row and column are None for the frame's class token."""

    frame: int
    row: int | None
    column: int | None


@dataclasses.dataclass(frozen=True)
class Patch:
    """A distilled patch at a tap, what it gave to each term, and the patches merged into it."""

    tap: int
    number: int
    weight: float
    word: int | None  # the number of the word that is nearest to it; None: no term has words
    contributions: dict[str, float]  # term -> what it gave, times the weight of the tap
    members: tuple[Member, ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame at a tap, and what it gave to the terms of frames."""

    tap: int
    number: int
    weight: float  # in the sum of frames that the sentence is compared with
    contributions: dict[str, float]  # term -> what it gave, times the weight of the tap


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The parts of a score, which add up to it.

    `parts` are the score by term and tap. The words' and patches' contributions to `word_patch`
    add up to that part, the patches' contributions to `sentence_patch` to that one, and the frames'
    to `sentence_frame` or `sentence_clip`. All contain the weights of the taps.

    `concepts` has an array for every stage of distillation, which says for every patch of a frame
    which concept it is in after that stage: [taps, frames, 1 + rows x columns], the class token
    first, then row by row. -1: it was not kept. The last concepts are the distilled patches.
    """

    text: str
    video: Segment
    score: float
    taps: tuple[int, ...]  # layers of the vision tower
    parts: dict[str, tuple[float, ...]]  # term -> by tap
    tap_weights: dict[str, tuple[float, ...]]
    words: tuple[Word, ...]  # none if no term has words
    patches: tuple[Patch, ...]
    frames: tuple[Frame, ...]
    concepts: tuple[Int[np.ndarray, "l t p"], ...]
    images: UInt8[np.ndarray, "t s s 3"]  # the frames

    def to_json(self) -> dict[str, Any]:
        """Everything but the images, in JSON's own types; the text is called `query`."""
        names = [x.name for x in dataclasses.fields(self) if x.name not in ("text", "images")]
        members = {name: getattr(self, name) for name in names}
        return to_json_types({"query": self.text, **members, "video": self.video._asdict()})

    def draw(self, path: PathLike) -> None:
        """Draws the figure, a PNG. Raises UsageError if it cannot be written."""
        from hvp_jax.retrieval import figure  # imports Matplotlib

        figure.draw(path, self)

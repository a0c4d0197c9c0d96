"""The verb `explain`: what the score of a text and a video consists of, as a figure and JSON."""

import dataclasses
import logging
from typing import Any

from data.errors import UsageError
from data.records import Segment
from data.storage.path import Path
from hvp_jax.monitoring import json_files
from hvp_jax.retrieval.explanation import Explanation
from hvp_jax.retrieval.retriever import Retriever

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ExplainResult:
    """The content of explanation.json."""

    explanation: dict[str, Any] = dataclasses.field(metadata={"json": "**"})
    text: str = dataclasses.field(metadata={"json": None})


def run(
    weights: Path,
    video: Path,
    text: str,
    *,
    start: float | None = None,
    end: float | None = None,
    output: Path | None = None,
) -> ExplainResult:
    """Explains the score of a text and a video, or its stretch from `start` to `end` seconds.

    Writes explanation.png and explanation.json to the folder `output`, if it is given.
    """
    if start is not None and end is not None and end <= start:
        raise UsageError(f"--end={end:g} is not after --start={start:g}; give seconds of the video")
    retriever = Retriever.load(weights)
    explanation = retriever.explain(text, Segment(str(video), start, end))
    members = explanation.to_json()
    if output is not None:
        json_files.make_folder(output, "--output")
        json_files.write_json(output / "explanation.json", members)
        explanation.draw(output / "explanation.png")
        log.info("figure: %s", output / "explanation.png")
    return ExplainResult(members, _summary(explanation))


def _summary(explanation: Explanation) -> str:
    """The score by term and tap, and what the words gave, as lines of text."""
    columns = [f"layer {tap}" for tap in explanation.taps]
    lines = [" " * 16 + "".join(f"{name:>10}" for name in (*columns, "sum"))]
    for term, part in explanation.parts.items():
        values = "".join(f"{value:>10.4f}" for value in (*part, sum(part)))
        lines.append(f"{term:<16}{values}")
    lines.append(f"{'score':<16}{explanation.score:>{10 * len(columns) + 10}.4f}")
    if explanation.words:
        lines += ["", f"{'word':<16}{'weight':>10}{'gave':>10}"]
        words = sorted(explanation.words, key=lambda word: -word.contribution)
        lines += [f"{w.word:<16}{w.weight:>10.4f}{w.contribution:>10.4f}" for w in words]
    return "\n".join(lines)

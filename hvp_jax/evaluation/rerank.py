"""Scores changed after the fact by what else is known: other queries, or a bank of captions.

A query's rank then depends on more than the query and the gallery. The figures are therefore given
beside those of the raw scores, with what each method sees. β multiplies mean cosines.

- dsl: dual softmax (arXiv 2109.04290), S · softmax(β S) over all queries of the test.
- qbnorm: the inverted softmax of QB-Norm (arXiv 2112.12777), exp(β S) over the sum of exp(β B) over
  the bank, whose scores against the gallery are B.
- dis: its dynamic inverted softmax: the same, but only for queries whose best clip is the best clip
  of some caption of the bank too; the others keep S.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data.records import Clip
from hvp_jax.evaluation import metrics

METHODS = ("dsl", "qbnorm", "dis")
DSL_BETA = 100.0  # the scale of CLIP's logits
BANK_BETA = 20.0  # of the QB-Norm paper
BANK = 5000  # captions, at most

SEES = {
    "dsl": "sees all queries of the test at once: a query's rank depends on the others",
    "qbnorm": "sees {bank:,} captions of split train, and no other query of the test",
    "dis": "sees {bank:,} captions of split train, and no other query of the test; changes only "
    "the queries whose best clip is the best of one of those captions too",
}


def needs_bank(names: Sequence[str]) -> bool:
    return bool({"qbnorm", "dis"} & set(names))


def caption_bank(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """At most BANK captions of `clips`, chosen by `seed`: each as a clip with one caption."""
    single = [
        dataclasses.replace(clip, captions=(text,)) for clip in clips for text in clip.captions
    ]
    chosen = np.random.default_rng(seed).permutation(len(single))[:BANK]
    return [single[i] for i in np.sort(chosen)]


def figures(
    names: Sequence[str],
    scores: Float[np.ndarray, "captions clips"],
    bank: Float[np.ndarray, "bank clips"],
    clip_of_caption: Int[np.ndarray, " captions"],
) -> dict[str, dict[str, Any]]:
    """The metrics of each method, and what it sees. `scores` and `bank` are mean cosines.

    A bank of captions corrects the clips' popularity, so that `qbnorm` and `dis` are of text to
    video only.
    """
    scores, bank = scores.astype(np.float64), bank.astype(np.float64)
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        if name == "dsl":
            changed = {
                "text_to_video": dual_softmax(scores, DSL_BETA, axis=0),
                "video_to_text": dual_softmax(scores, DSL_BETA, axis=1),
            }
        else:
            change = inverted_softmax if name == "qbnorm" else dynamic_inverted_softmax
            changed = {"text_to_video": change(scores, bank, BANK_BETA)}
        result[name] = {
            direction: getattr(metrics, direction)(matrix, clip_of_caption)
            for direction, matrix in changed.items()
        }
        result[name]["sees"] = SEES[name].format(bank=len(bank))
    return result


def dual_softmax(
    scores: Float[np.ndarray, "captions clips"], beta: float, axis: int
) -> Float[np.ndarray, "captions clips"]:
    """Scores times their softmax over the queries: captions (`axis` 0) or clips (`axis` 1)."""
    return scores * np.exp(beta * scores - _log_sum_exp(beta * scores, axis))


def inverted_softmax(
    scores: Float[np.ndarray, "captions clips"],
    bank: Float[np.ndarray, "bank clips"],
    beta: float,
) -> Float[np.ndarray, "captions clips"]:
    """The logarithm of the inverted softmax, which orders a query's clips alike."""
    return beta * scores - _log_sum_exp(beta * bank, axis=0)


def dynamic_inverted_softmax(
    scores: Float[np.ndarray, "captions clips"],
    bank: Float[np.ndarray, "bank clips"],
    beta: float,
) -> Float[np.ndarray, "captions clips"]:
    """`inverted_softmax` of the rows whose best clip is one of the bank's; else the scores."""
    active = np.isin(scores.argmax(axis=1), bank.argmax(axis=1))
    return np.where(active[:, None], inverted_softmax(scores, bank, beta), scores)


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    greatest = x.max(axis=axis, keepdims=True)
    return greatest + np.log(np.exp(x - greatest).sum(axis=axis, keepdims=True))

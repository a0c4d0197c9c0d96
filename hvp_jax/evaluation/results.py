"""eval.json and what the scoring was."""

from collections.abc import Sequence
from pathlib import Path

import optax
from ml_collections import ConfigDict

from data.batches import frame_sources
from data.records import Clip
from hvp_jax.evaluation import report
from hvp_jax.evaluation.scorer import Scorer, evaluate_split
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.processes import is_primary

LEAK_WARNING = (
    "similarity.word_weights=paired: the weights of each clip's own caption are in its scores. "
    "The figures contain the answer and compare with nothing but the original's."
)


def scoring_settings(config: ConfigDict) -> dict:
    """What the scoring was, for the report; it says so where the figures contain the answer."""
    about = {
        "word_weights": config.similarity.word_weights,
        "normalize": config.similarity.normalize,
        "mask_padding": config.similarity.mask_padding,
        "noise": config.distill.noise == "always",
    }
    paired = config.similarity.word_weights == "paired"
    return about | ({"contains_the_answer": True, "warning": LEAK_WARNING} if paired else {})


def write_results(
    config: ConfigDict,
    workdir: Path,
    scorer: Scorer,
    params: optax.Params,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    chosen: dict,
    excluded: Sequence[Clip],
) -> dict:
    """The figures of `eval.split` with the chosen weights: returned, and eval.json.

    `excluded`: what `data.exclude` leaves out, of every split.
    """
    result, matrix = evaluate_split(scorer, params, clips, source, f"eval {config.eval.split}")
    result["counts"]["excluded"] = sum(clip.split == config.eval.split for clip in excluded)
    result |= {
        "split": config.eval.split,
        "checkpoint": chosen,
        "scoring": scoring_settings(config),
    }
    if is_primary():
        json_files.write_json(workdir / "eval.json", result)
        report.contact_sheet_of(workdir / "contact_sheet.png", clips, matrix, source)
    text = report.table(result)
    for part in (result["scoring"], result["checkpoint"]):
        if "warning" in part:
            text += f"\n\n{part['warning']}"
    return result | {"text": text}

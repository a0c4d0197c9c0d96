"""The result of an evaluation: eval.json, ranks.npz, the TREC files, the contact sheet and the
printed table."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from data.batches import frame_sources
from data.records import Clip
from data.storage.path import Path
from hvp_jax.evaluation import metrics, rankings, report, rerank, trec
from hvp_jax.evaluation.scorer import Scorer, score_split
from hvp_jax.monitoring import json_files
from hvp_jax.parallel.processes import is_primary

LEAK_WARNING = (
    "similarity.word_weights=paired: every clip is scored with the word weights of its own "
    "caption. The metrics contain the answer: compare them only with the original implementation's."
)


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The metrics of a split and how they were computed: the content of eval.json."""

    text_to_video: dict[str, float]
    video_to_text: dict[str, float]
    counts: dict[str, int]
    split: str
    checkpoint: dict[str, Any]
    scoring: dict[str, Any]
    split_warning: dict[str, str] = dataclasses.field(metadata={"json": "**"})  # {}: none
    reranked: dict[str, Any] = dataclasses.field(metadata={"json": "**"})  # {}: not asked for

    @property
    def text(self) -> str:
        paragraphs = [report.table(self.text_to_video, self.video_to_text, self.counts)]
        if self.reranked:
            paragraphs.append(report.reranked_table(self.reranked["reranked"]))
        for part in (self.split_warning, self.scoring, self.checkpoint):
            if "warning" in part:
                paragraphs.append(part["warning"])
        return "\n\n".join(paragraphs)


def scoring_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings that affect the scores, with a warning if the scores contain the answer."""
    settings = {
        "word_weights": config.similarity.word_weights,
        "normalize": config.similarity.normalize,
        "mask_padding": config.similarity.mask_padding,
        "noise": config.distillation.noise == "always",
    }
    # Word weights are used by one term only.
    paired = settings["word_weights"] == "paired" and "word_patch" in config.similarity.terms
    return settings | ({"contains_the_answer": True, "warning": LEAK_WARNING} if paired else {})


def write_results(
    config: ConfigDict,
    workdir: Path,
    scorer: Scorer,
    params: optax.Params,
    *,
    clips: Sequence[Clip],
    source: frame_sources.FrameSource,
    checkpoint: dict[str, Any],
    excluded: Sequence[Clip],
    reranking: Sequence[str] = (),
    bank: Sequence[Clip] = (),
) -> EvalResult:
    """Evaluates `eval.split` and writes the files of the evaluation to the workdir.

    `checkpoint` describes where `params` come from. `excluded` are the clips of all splits
    that `data.exclude` removes. The figures after each of `reranking`, names of `rerank.METHODS`,
    are added beside the raw ones; those with a bank use the captions of `bank`.
    """
    split = config.eval.split
    matrix, bank_scores = score_split(
        scorer, params, clips, source, bank=bank, progress_label=f"eval {split}"
    )
    ranks = rankings.rank(clips, matrix)
    warning = metrics.small_gallery_warning(split, len(clips))
    cosines = len(config.similarity.terms) * len(scorer.model.taps)
    after = rerank.figures(
        reranking, matrix / cosines, bank_scores / cosines, ranks.clip_of_caption
    )
    result = EvalResult(
        text_to_video=metrics.summary(ranks.text_to_video),
        video_to_text=metrics.summary(ranks.video_to_text),
        counts={
            "videos": len(clips),
            "captions": len(matrix),
            "excluded": sum(clip.split == split for clip in excluded),
        },
        split=split,
        checkpoint=checkpoint,
        scoring=scoring_settings(config),
        split_warning={"warning": warning} if warning else {},
        reranked={"reranked": after} if after else {},
    )
    if is_primary():
        rankings.write(workdir, ranks)
        trec.write(workdir, ranks, matrix)
        json_files.write_json(workdir / "eval.json", json_files.to_json_types(result))
        report.draw_retrievals(workdir / "contact_sheet.png", clips, matrix, source)
    return result

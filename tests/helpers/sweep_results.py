"""Made-up folders of sweeps: the files that `train` leaves in a workdir, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.records import Clip
from hvp_jax.evaluation import metrics, rankings
from hvp_jax.sweeps import manifest

CLIPS, CAPTIONS = 80, 2


def clips(split: str = "test", word: str = "caption") -> list[Clip]:
    return [
        Clip(f"clip {i}", "", tuple(f"{word} {j} of {i}" for j in range(CAPTIONS)), split)
        for i in range(CLIPS)
    ]


def write_run(
    workdir: Path,
    *,
    skill: float,
    seed: int,
    data: Sequence[Clip] | None = None,
    scoring: dict[str, Any] | None = None,
    chosen_on: str | None = "val",
) -> None:
    """A finished run; a greater `skill` gives better ranks. Runs share how hard each query is."""
    data = clips() if data is None else data
    hard, noise = np.random.default_rng(7), np.random.default_rng(seed)
    matrix = hard.standard_normal((CLIPS * CAPTIONS, CLIPS))
    matrix += 0.2 * noise.standard_normal(matrix.shape)
    matrix[np.arange(len(matrix)), np.repeat(np.arange(CLIPS), CAPTIONS)] += skill
    ranks = rankings.rank(data, matrix)
    workdir.mkdir(parents=True, exist_ok=True)
    rankings.write(workdir, ranks)
    plain = {"word_weights": "query", "normalize": "softmax", "mask_padding": True, "noise": False}
    evaluation = {
        "text_to_video": metrics.summary(ranks.text_to_video),
        "video_to_text": metrics.summary(ranks.video_to_text),
        "counts": {"videos": CLIPS, "captions": len(matrix), "excluded": 0},
        "split": ranks.split,
        "checkpoint": {"step": 10, "chosen_on": chosen_on},
        "scoring": plain if scoring is None else plain | scoring,
    }
    (workdir / "eval.json").write_text(json.dumps(evaluation))
    cost = {"parameters": 1_500_000, "flops_per_step": 2e9, "step_ms": 100.0 + seed}
    cost |= {"peak_memory_mib": 512.0 + seed, "device": "cpu", "devices": 1}
    (workdir / "cost.json").write_text(json.dumps(cost))
    (workdir / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')


def write_sweep(folder: Path, skills: dict[str, float], seeds: Sequence[int] = (0, 1, 2)) -> None:
    """A sweep whose base is the first setting, with all its runs finished."""
    names = list(skills)
    settings = tuple((name, {"model.taps": [i]}) for i, name in enumerate(names))
    manifest.write(folder, manifest.Manifest("made up", names[0], settings, tuple(seeds)))
    for number, (name, skill) in enumerate(skills.items()):
        for seed in seeds:
            path = manifest.run_folder(folder, name, seed)
            write_run(path, skill=skill, seed=1000 * number + seed)

"""Trains the PyTorch model through a whole golden run, by the update rule of the original.

`hvp_jax/parity/runs/golden_run.py` describes a run; the arrays that are returned have the names
that it lists. The model is that of `torch_hvpnet.py` in the form of the original.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.torch_hvpnet import (
    Model,
    TextFeatures,
    VideoFeatures,
    loss_terms,
    scores,
    text_features,
    video_features,
)
from hvp_jax.models.clip_config import PAPER_TERMS
from hvp_jax.parity.model_arrays import retrieval_metrics
from hvp_jax.parity.runs.golden_run import GoldenRun, state_of
from hvp_jax.training.optimization.optimizer import MAX_LOG_SCALE

State = dict[str, torch.Tensor]
Arrays = dict[str, np.ndarray]
EVAL_BATCH = 16  # captions, and clips, encoded and scored at a time
LOG_SCALE = "clip.logit_scale"
SIMILARITY, SIMILARITY_HALF = "eval/similarity", "eval/similarity_half"


@dataclasses.dataclass
class BertAdam:
    """BERT's Adam, without bias correction; the moments have the type of the weights.

    `constants`: those of a run's JSON. Tensors that need no gradient are not changed.
    """

    state: State
    constants: dict[str, Any]

    def __post_init__(self) -> None:
        self.step = 0
        self.trained = {name: p for name, p in self.state.items() if p.requires_grad}
        self.mean = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        self.square = {name: torch.zeros_like(p) for name, p in self.trained.items()}

    def factor(self) -> float:
        """The schedule's factor of the next update: warm-up, then a cosine."""
        x = self.step / self.constants["t_total"]
        warmup = self.constants["warmup"]
        return x / warmup if x < warmup else 0.5 * (1 + math.cos(math.pi * x))

    @torch.no_grad()
    def update(self) -> tuple[float, float]:
        """Clips the gradients and applies them; returns their norm and the schedule's factor."""
        c, factor = self.constants, self.factor()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), c.get("max_grad_norm", 1.0))
        for name, p in self.trained.items():
            assert p.grad is not None  # every tensor has a part in the loss
            mean = self.mean[name].mul_(c["b1"]).add_(p.grad, alpha=1 - c["b1"])
            square = self.square[name].mul_(c["b2"]).addcmul_(p.grad, p.grad, value=1 - c["b2"])
            update = mean / (square.sqrt() + c["eps"])
            if "bias" not in name:
                update += c["weight_decay"] * p
            rate = c["lr"] * c["coef_lr"] if "clip." in name else c["lr"]
            p -= rate * factor * update
            p.grad = None
        self.state[LOG_SCALE].clamp_(max=MAX_LOG_SCALE)
        self.step += 1
        return norm.item(), factor


def run_evaluates(run: GoldenRun) -> bool:
    """Whether the file of a run has scores of its test split."""
    return SIMILARITY in run.expected or SIMILARITY_HALF in run.expected


def replay(run: GoldenRun, dtype: torch.dtype) -> Arrays:
    """Trains and evaluates as the run says; returns arrays with the names of its file."""
    computed = record(run, dtype, run.snapshots, evaluate=run_evaluates(run))
    computed["loss/curve_perturbed"] = computed["loss/curve"]
    return computed


def record(
    run: GoldenRun,
    dtype: torch.dtype,
    snapshots: dict[int, list[str]],
    *,
    evaluate: bool = True,
    perturbation: float = 0.0,
    label: str = "replaying",
) -> Arrays:
    """The curves, the tensors of `snapshots` (after so many updates), and the scores.

    The initial weights are multiplied by 1 + `perturbation` times normal noise. `label` is that
    of the progress bar.
    """
    rng = np.random.default_rng(0)
    state: State = {}
    for name, x in state_of(run.arrays).items():
        noise = 1 + perturbation * rng.standard_normal(x.shape)
        trained = name not in run.metadata["frozen"]
        state[name] = torch.tensor(np.float64(x) * noise, dtype=dtype, requires_grad=trained)
    # The tensors are small: a second thread saves little, and where other processes use the cores
    # the threads wait for each other, so that a step takes 20 times as long.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        computed = _train(run, state, snapshots, label)
        return computed | (_evaluate(run, state) if evaluate else {})
    finally:
        torch.set_num_threads(threads)


def _model(run: GoldenRun) -> Model:
    return Model(run.clip_config, run.taps, run.stages, original=True)


def _train(run: GoldenRun, state: State, snapshots: dict[int, list[str]], label: str) -> Arrays:
    """Changes the weights `state`; returns the curves and the snapshots."""
    model = _model(run)
    optimizer = BertAdam(state, run.metadata["optimizer"])
    rows, computed = [], {}
    for i in tqdm(range(run.steps), label, unit="step"):
        terms = loss_terms(state, _batch(run, i), model)
        terms.sum().backward()
        norm, factor = optimizer.update()
        row = {"loss/curve": terms.sum().item(), "grad_norm": norm, "lr_factor": factor}
        row |= {f"loss/{term}": x for term, x in zip(PAPER_TERMS, terms.tolist(), strict=True)}
        rows.append(row | {"logit_scale": state[LOG_SCALE].item()})
        for name in snapshots.get(i + 1, ()):
            if name in state:
                computed[f"after{i + 1}/{name}"] = state[name].detach().numpy().copy()
    return computed | {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _batch(run: GoldenRun, step: int) -> State:
    batch = {name: torch.as_tensor(x) for name, x in run.batch(step)._asdict().items()}
    return batch | {"text_ids": batch["text_ids"].long()}


@torch.no_grad()
def _evaluate(run: GoldenRun, state: State) -> Arrays:
    """Scores of the test split and their retrieval metrics."""
    computed: Arrays = {}
    for name, suffix, half in ((SIMILARITY, "", False), (SIMILARITY_HALF, "_half", True)):
        matrix = _score_matrix(run, state, _model(run)._replace(half_towers=half))
        computed |= {name: matrix} | retrieval_metrics(matrix, run.test_targets(), suffix)
    return computed


def _score_matrix(run: GoldenRun, state: State, model: Model) -> np.ndarray:
    """Scores of all test captions and clips [texts, clips], summed over terms and taps."""

    def batches(rows: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, range(EVAL_BATCH, len(rows), EVAL_BATCH))

    texts: list[TextFeatures] = []
    for rows in batches(run.test_split("captions")):
        ids, mask = map(torch.as_tensor, run.texts(rows))
        texts.append(text_features(ids.long(), mask, state, model))
    videos: list[VideoFeatures] = []
    for rows in batches(run.test_split("clips")):
        video, mask = map(torch.as_tensor, run.videos(rows))
        videos.append(video_features(video, mask, state, model))
    _, first = np.unique(run.test_targets(), return_index=True)  # the caption paired with a clip
    paired_weights = torch.cat([text.word_weights for text in texts])[first]
    columns = []
    for clips, weights in zip(videos, paired_weights.split(EVAL_BATCH), strict=True):
        rows_of_clips = []
        for text in texts:
            by_tap = [scores(text, clips, tap, weights) for tap in range(len(model.taps))]
            tables = torch.stack([table for tables in by_tap for table in tables])
            rows_of_clips.append(tables.sum(dim=0))
        columns.append(torch.cat(rows_of_clips))
    return torch.cat(columns, dim=1).numpy()

"""PyTorch's side of `benchmarks/cpu_peer.py`: `torch_hvpnet.py`, used as the original is.

As there, a training step ends with BERT's Adam tensor by tensor, and the scores of a gallery are
computed split by split: the token weights and the unit features of a split are computed again for
every other split that it is scored against.
"""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from benchmarks import torch_hvpnet as hvpnet
from benchmarks.cpu_sides import common
from benchmarks.cpu_sides.common import Run, Sizes
from benchmarks.torch_run import BertAdam
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.parity import torch_clip

STAGES = 3
FROZEN = "clip.visual.conv1.weight"
OPTIMIZER = {
    "t_total": 1000, "warmup": 0.1, "lr": 1e-4, "coef_lr": 1e-3, "b1": 0.9, "b2": 0.98,
    "eps": 1e-6, "weight_decay": 0.2,
}  # fmt: skip


class Side:
    """The model, its weights, and a builder for each row."""

    def __init__(self, folder: Path, sizes: Sizes):
        config = VARIANTS[sizes.variant]
        layers = config.vision_layers
        self.sizes, taps = sizes, (1, layers // 2, layers)
        self.model = hvpnet.Model(config, taps, STAGES)
        with np.load(folder / "weights.npz") as file:
            self.state = {name: torch.tensor(file[name]) for name in file.files}
        ids, video = common.batch_of(sizes, config.image_size, config.vocab_size)
        self.ids, self.video = torch.tensor(ids).long(), torch.tensor(video)
        self.tokens = sizes.frames * ((config.image_size // config.patch_size) ** 2 + 1)
        if sizes.variant == "tiny":
            torch.set_num_threads(1)  # threads that wait for each other are slower, as in torch_run

    def rows(self) -> Mapping[str, Callable[[], Run]]:
        return {
            "step": self.step,
            "encode_clips": self.encode_clips,
            "encode_texts": self.encode_texts,
            "distillation": functools.partial(self.distillation, gradient=False),
            "distillation_gradient": functools.partial(self.distillation, gradient=True),
            "similarity": self.similarity,
            "evaluation": self.evaluation,
        }

    def step(self) -> Run:
        state = {name: x.clone().requires_grad_(name != FROZEN) for name, x in self.state.items()}
        optimizer = BertAdam(state, OPTIMIZER)
        batch = {"text_ids": self.ids[: self.sizes.batch], "video": self.video}

        def run() -> float:
            loss = hvpnet.loss_terms(state, batch, self.model).sum()
            loss.backward()
            optimizer.update()
            return loss.item()

        return run

    def _raw_text(self) -> dict[str, torch.Tensor]:
        layers, ids = (self.model.config.text_layers,), self.ids[: self.sizes.texts]
        _, words, sentence = torch_clip.encode_text(ids, self.state, self.model.config, layers)
        return {"words": words, "sentence": sentence}

    def _raw_video(self) -> dict[str, torch.Tensor]:
        """Distilled tokens [L, B, M, D] and frames [L, B, T, D]."""
        x = hvpnet.encode_frames(self.video, None, self.state, self.model)
        patches = hvpnet.distill(x.flatten(0, 1).flatten(1, 2), self.state, STAGES, noise=False)
        return {"patches": patches.unflatten(0, x.shape[:2]), "frames": x[..., 0, :]}

    def encode_clips(self) -> Run:
        return self._mean_of_unit(self._raw_video, "patches")

    def encode_texts(self) -> Run:
        return self._mean_of_unit(self._raw_text, "words")

    def _mean_of_unit(self, encode: Callable[[], dict], name: str) -> Run:
        @torch.no_grad()
        def run() -> float:
            return hvpnet.unit(encode()[name]).abs().mean().item()

        return run

    def distillation(self, *, gradient: bool) -> Run:
        taps, width = len(self.model.taps), self.model.config.embed_dim
        x = torch.tensor(common.tokens_of(self.sizes, width, self.tokens, taps))
        x.requires_grad_(gradient)
        state = {
            name: p.clone().requires_grad_(gradient)
            for name, p in self.state.items()
            if name.startswith("PatchListProcessing.")
        }

        def run() -> float:
            with torch.set_grad_enabled(gradient):
                mean = hvpnet.distill(x, state, STAGES, noise=False).square().mean()
                if gradient:
                    torch.autograd.grad(mean, [x, *state.values()], allow_unused=True)
            return mean.item()

        return run

    @torch.no_grad()
    def _scores(self, raw: Mapping[str, torch.Tensor]) -> float:
        """The mean of all scores' sizes; `raw` has the features of a gallery, not normalised."""
        weights = functools.partial(hvpnet.token_weights, state=self.state, original=False)
        split = self.sizes.split
        table = []
        for words, sentence in zip(
            raw["words"].split(split), raw["sentence"].split(split), strict=True
        ):
            row = []
            for patches, frames in zip(
                raw["patches"].split(split, 1), raw["frames"].split(split, 1), strict=True
            ):
                text = hvpnet.TextFeatures(
                    hvpnet.unit(words), weights(words, name="w_feat_w"), hvpnet.unit(sentence)
                )
                video = hvpnet.VideoFeatures(
                    hvpnet.unit(patches), weights(patches, name="p_feat_w"),
                    hvpnet.unit(frames), weights(frames, name="f_feat_w"),
                )  # fmt: skip
                by_tap = [
                    hvpnet.scores(text, video, tap, None) for tap in range(len(self.model.taps))
                ]
                row.append(sum(score for scores in by_tap for score in scores))
            table.append(torch.cat(row, dim=1))
        return torch.cat(table).abs().mean().item()

    def similarity(self) -> Run:
        tokens = self.tokens
        for _ in range(STAGES):
            tokens = (tokens + 1) // 2
        width, taps = self.model.config.embed_dim, len(self.model.taps)
        raw = common.gallery_of(self.sizes, width, taps, tokens)
        return functools.partial(self._scores, {k: torch.tensor(x) for k, x in raw.items()})

    def evaluation(self) -> Run:
        gallery = self.sizes.gallery

        @torch.no_grad()
        def run() -> float:
            texts = [self._raw_text() for _ in range(0, gallery, self.sizes.texts)]
            clips = [self._raw_video() for _ in range(0, gallery, self.sizes.batch)]
            raw = {k: torch.cat([x[k] for x in texts])[:gallery] for k in texts[0]}
            raw |= {k: torch.cat([x[k] for x in clips], dim=1)[:, :gallery] for k in clips[0]}
            return self._scores(raw)

        return run


def product(side: int) -> Callable[[], torch.Tensor]:
    x = torch.randn(side, side)
    return lambda: x @ x


if __name__ == "__main__":
    common.serve(lambda folder, sizes: Side(folder, sizes).rows(), product)

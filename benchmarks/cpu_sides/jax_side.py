"""This project's side of `benchmarks/cpu_peer.py`. It writes the weights that the other reads."""

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cpu_sides import common
from benchmarks.cpu_sides.common import Run, Sizes
from configs.base import get_config
from data.batches.batch import Batch, TextBatch, VideoBatch
from hvp_jax.config.resolve import resolve
from hvp_jax.evaluation import scorer
from hvp_jax.models.distillation.stage import TokenDistillation
from hvp_jax.models.hvpnet import HVPNet, from_config, init_params
from hvp_jax.models.layers import TokenWeight
from hvp_jax.models.score_weights import normalize_token_weights
from hvp_jax.models.similarity import TextFeatures, VideoFeatures, l2_normalize
from hvp_jax.monitoring.throughput import release_freed_memory
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import train_state
from hvp_jax.training.step_spec import step_spec_from_config
from hvp_jax.training.train_step import train_step
from hvp_jax.weights import torch_params


class Side:
    """The model and a builder for each row."""

    def __init__(self, folder: Path, sizes: Sizes):
        config = get_config()
        config.model.variant, config.model.freeze_patches = sizes.variant, True
        config.data.max_frames, config.data.max_words = sizes.frames, sizes.words
        config.train.batch_size, config.train.steps = sizes.batch, 1000
        config.distillation.noise = "never"  # the two sides would draw different noise
        self.sizes, self.config = sizes, resolve(config)
        self.model: HVPNet = from_config(self.config)
        np.savez(folder / "weights.npz", **torch_params.to_torch(self._params()))
        clip = self.model.clip_config
        self.ids, self.video = common.batch_of(sizes, clip.image_size, clip.vocab_size)
        self.tokens = sizes.frames * ((clip.image_size // clip.patch_size) ** 2 + 1)
        self.partitioner = Partitioner("shard_map", devices=jax.devices()[:1])

    def _params(self) -> dict:
        """The weights, computed again: a copy would count as memory of training."""
        return jax.jit(init_params, static_argnums=(0, 1))(self.model, self.config.seed)

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
        sizes = self.sizes
        spec = step_spec_from_config(self.config, self.model, sizes.batch)
        assert spec.optimizer is not None, "the spec of a run has one"
        created = train_state.create_train_state(self._params(), spec.optimizer)
        state = self.partitioner.shard_state(created)
        del created
        step = self.partitioner.compile_train_step(functools.partial(train_step, spec=spec), state)
        ids = self.ids[: sizes.batch]
        masks = np.ones(ids.shape, bool), np.ones(self.video.shape[:2], bool)
        batch = self.partitioner.shard_batch(Batch(ids, masks[0], self.video, masks[1]))
        step.lower(state, batch).compile()
        release_freed_memory()  # as the training loop does

        def run() -> float:
            nonlocal state
            state, metrics = step(state, batch)
            return float(jax.block_until_ready((state, metrics))[1]["loss"])

        return run

    def _text_encoder(self) -> Callable[[np.ndarray], TextFeatures]:
        function = functools.partial(scorer.encode_text, model=self.model)
        encode, params = self.partitioner.compile_eval_fn(function), self._params()
        return lambda ids: encode(params, TextBatch(ids, np.ones(ids.shape, bool)))

    def _clip_encoder(self) -> Callable[[np.ndarray], VideoFeatures]:
        function = functools.partial(scorer.encode_video, model=self.model)
        encode, params = self.partitioner.compile_eval_fn(function), self._params()

        def run(video: np.ndarray) -> VideoFeatures:
            batch = VideoBatch(video, np.ones(video.shape[:2], bool))
            return encode(params, (batch, np.zeros(len(video), np.int32)))

        return run

    def encode_clips(self) -> Run:
        encode = self._clip_encoder()
        return lambda: float(np.abs(encode(self.video).patches).mean())

    def encode_texts(self) -> Run:
        encode = self._text_encoder()
        return lambda: float(np.abs(encode(self.ids[: self.sizes.texts]).words).mean())

    def distillation(self, *, gradient: bool) -> Run:
        taps = len(self.model.taps)
        x = common.tokens_of(self.sizes, self.model.clip_config.embed_dim, self.tokens, taps)
        count = np.full(len(x), self.tokens, np.int32)
        distill = TokenDistillation(stages=self.model.stages)

        def mean_square(params, x):
            return jnp.square(distill.apply({"params": params}, x, count)[0]).mean()

        work = jax.value_and_grad(mean_square, argnums=(0, 1)) if gradient else mean_square
        work, arguments = jax.jit(work), jax.device_put((self._params()["distill"], x))

        def run() -> float:
            result = jax.block_until_ready(work(*arguments))
            return float(result[0] if gradient else result)

        return run

    def _gallery(self) -> tuple[TextFeatures, VideoFeatures]:
        """The features of `common.gallery_of`, normalised and weighted as the encoders do."""
        tokens = self.tokens
        for _ in range(self.model.stages):
            tokens = (tokens + 1) // 2
        raw = common.gallery_of(
            self.sizes, self.model.clip_config.embed_dim, len(self.model.taps), tokens
        )

        params = self._params()

        def weights(x, name):
            y = TokenWeight(jnp.float32).apply({"params": params[name]}, x)
            return normalize_token_weights(y, jnp.ones(y.shape, bool), "softmax")

        @jax.jit
        def features(raw):
            unit = {name: l2_normalize(x) for name, x in raw.items()}
            words = weights(raw["words"], "word_weight")
            patches = weights(raw["patches"], "patch_weight").swapaxes(0, 1)
            frames = weights(raw["frames"], "frame_weight")
            patch = unit["patches"].swapaxes(0, 1)
            patch_sum = jnp.einsum("blm,blmd->bld", patches, patch)
            frame_sum = jnp.einsum("lbt,lbtd->bld", frames, unit["frames"])
            text = TextFeatures(unit["words"], words, unit["sentence"])
            return text, VideoFeatures(patch, patches, patch_sum, frame_sum)

        return jax.device_get(features(raw))

    def _score(self, text: TextFeatures, video: VideoFeatures) -> float:
        chunk = self.config.similarity.chunk_size
        return float(np.abs(scorer.score_matrix(text, video, None, chunk)).mean())

    def similarity(self) -> Run:
        return functools.partial(self._score, *self._gallery())

    def evaluation(self) -> Run:
        encode_text, encode_clip = self._text_encoder(), self._clip_encoder()
        sizes = self.sizes

        def run() -> float:
            def encode(function, rows, size):
                parts = [function(rows) for _ in range(0, sizes.gallery, size)]
                return jax.tree.map(lambda *x: np.concatenate(x)[: sizes.gallery], *parts)

            text = encode(encode_text, self.ids[: sizes.texts], sizes.texts)
            return self._score(text, encode(encode_clip, self.video, sizes.batch))

        return run


def product(side: int) -> Callable[[], None]:
    x = jax.random.normal(jax.random.key(0), (side, side))
    dot = jax.jit(jnp.dot)
    return lambda: dot(x, x).block_until_ready()


if __name__ == "__main__":
    common.serve(lambda folder, sizes: Side(folder, sizes).rows(), product)

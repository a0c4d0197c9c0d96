"""A tiny CLIP pretrained on stills: what the paper's tower is to real videos.

    python benchmarks/pretrain_stills.py --root=CLIPS --out=WEIGHTS [--dataset=folder] [--steps=300]

One random frame of a training clip is matched with its caption, class token against sentence.
WEIGHTS is then `--config.model.weights` of a run or a sweep. docs/ablations.md uses it.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data import inputs, splits, tokenizer
from data.batches import frame_sources
from data.records import DatasetLocation
from hvp_jax.checkpoints import model_card, save_weights
from hvp_jax.models import hvpnet, losses
from hvp_jax.models.clip_config import VARIANTS
from hvp_jax.models.model_spec import ModelSpec
from hvp_jax.models.similarity import l2_normalize
from hvp_jax.monitoring import json_files
from hvp_jax.parallel import libtpu
from hvp_jax.training.optimization.optimizer import apply_updates_and_clamp, make_optimizer

CONFIG = VARIANTS["tiny"]
LAST = (CONFIG.vision_layers,)
LEARNING_RATE, BATCH, WORDS, FRAMES = 1.5e-3, 64, 24, 4


def stills(location: DatasetLocation, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one random frame of each clip, with one of its captions."""
    rng = np.random.default_rng(0)
    dataset = inputs.read_dataset(location, splits=("train",))
    dataset = splits.clips_of_split(dataset, "train")
    source = frame_sources.MemoryFrames(dataset, CONFIG.image_size, FRAMES)
    pairs = [(clip.clip_id, caption) for clip in dataset for caption in clip.captions]
    ids, mask = tokenizer.tokenize([caption for _, caption in pairs], WORDS)
    epochs = -(-steps * BATCH // len(pairs))
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(epochs)])
    for chosen in order[: steps * BATCH].reshape(steps, BATCH):
        frames = [rng.choice(source[pairs[i][0]]) for i in chosen]
        yield {"ids": ids[chosen], "mask": mask[chosen], "video": np.stack(frames)[:, None]}


def pretrain(location: DatasetLocation, workdir: Path, steps: int) -> None:
    """Trains CLIP alone, without HVP-Net's head, and writes it as an initial checkpoint."""
    model = hvpnet.HVPNet(CONFIG, LAST, stages=1, freeze_patches=False)
    params = {"clip": hvpnet.init_params(model, 0)["clip"]}
    optimizer = make_optimizer(LEARNING_RATE, LEARNING_RATE, steps, freeze_patches=False)

    def logits(model, batch):
        pixels = batch["video"].reshape(BATCH, batch["video"].shape[2], -1)
        clip = l2_normalize(model.clip.visual(pixels, jnp.ones(BATCH, bool))[-1, :, 0])
        text = l2_normalize(model.clip.text(batch["ids"], batch["mask"])[1])
        return jnp.exp(model.clip.logit_scale) * text @ clip.T

    @jax.jit
    def update(params, moments, batch):
        def loss_of(params):
            return losses.info_nce(model.apply({"params": params}, batch, method=logits))

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return apply_updates_and_clamp(params, updates), moments, loss

    moments = optimizer.init(params)
    for i, batch in enumerate(stills(location, steps), 1):
        params, moments, loss = update(params, moments, batch)
        if i % 100 == 0:
            print(f"stills: step {i}, loss {float(loss):.2f}", flush=True)
    workdir.mkdir(parents=True)
    save_weights.save_weights(workdir, 0, params)
    json_files.write_json(
        workdir / model_card.CARD_FILE, model_card.build_card(ModelSpec(CONFIG, pretrained=True))
    )


def main() -> None:
    libtpu.quiet_without_chips()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--dataset", choices=("shapes", "folder"), default="shapes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    pretrain(DatasetLocation(args.dataset, root=str(args.root)), args.out, args.steps)


if __name__ == "__main__":
    main()

"""Do several taps beat the last alone? On the built-in clips, on a tower that others trained.

    python benchmarks/hierarchy.py --out=NEW [--steps=300] [--seeds=3] [--clip_rate=1.5e-5]

First a tiny CLIP learns as CLIP did: stills, one frame of a clip against its caption, class token
against sentence, `--steps` of them. Then `run.py train` begins from it with the last tap and with
three, the tower held almost still by `--clip_rate`. Prints R@1 in both directions.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data import inputs, splits, tokenizer
from data.batches import frame_sources
from hvp_jax.checkpoints import model_card, save_weights
from hvp_jax.models import hvpnet, losses
from hvp_jax.models.clip_config import VARIANTS, ModelSpec
from hvp_jax.models.similarity import l2_normalize
from hvp_jax.monitoring import json_files
from hvp_jax.training.optimizer import apply_updates_and_clamp, make_optimizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = VARIANTS["tiny"]
LAST = (SIZES.vision_layers,)
THREE = (1, SIZES.vision_layers // 2, SIZES.vision_layers)
RATE, BATCH, WORDS, FRAMES = 1.5e-3, 64, 24, 4


def stills(clips: Path, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one frame each of as many clips, with one of their captions."""
    dice = np.random.default_rng(0)
    found = inputs.read_dataset("shapes", str(clips), "", "", splits=("train",))
    found = splits.clips_of_split(found, "train")
    source = frame_sources.MemoryFrames(found, SIZES.image_size, FRAMES)
    pairs = [(clip.clip_id, caption) for clip in found for caption in clip.captions]
    ids, mask = tokenizer.tokenize([caption for _, caption in pairs], WORDS)
    epochs = -(-steps * BATCH // len(pairs))
    order = np.concatenate([dice.permutation(len(pairs)) for _ in range(epochs)])
    for chosen in order[: steps * BATCH].reshape(steps, BATCH):
        frames = [dice.choice(source[pairs[i][0]]) for i in chosen]
        yield {"ids": ids[chosen], "mask": mask[chosen], "video": np.stack(frames)[:, None]}


def pretrain(clips: Path, workdir: Path, steps: int) -> None:
    """Writes a CLIP, and nothing of HVP-Net, as a checkpoint to begin from."""
    net = hvpnet.HVPNet(SIZES, LAST, stages=1, freeze_patches=False)
    params = {"clip": jax.jit(hvpnet.init_params, static_argnums=(0, 1))(net, 0)["clip"]}
    optimizer = make_optimizer(RATE, RATE, steps, 0.1, 0.2, 1.0, freeze_patches=False)

    def logits(net, batch):
        pixels = hvpnet.normalize_pixels(batch["video"], jnp.ones((BATCH, 1), bool))[:, 0]
        clip = l2_normalize(net.clip.visual(pixels)[-1, :, 0])
        text = l2_normalize(net.clip.text(batch["ids"], batch["mask"])[1])
        return jnp.exp(net.clip.logit_scale) * text @ clip.T

    @jax.jit
    def update(params, moments, batch):
        def loss_of(params):
            return losses.info_nce(net.apply({"params": params}, batch, method=logits))

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return apply_updates_and_clamp(params, updates), moments, loss

    moments = optimizer.init(params)
    for i, batch in enumerate(stills(clips, steps), 1):
        params, moments, loss = update(params, moments, batch)
        if i % 100 == 0:
            print(f"stills: step {i}, loss {float(loss):.2f}", flush=True)
    workdir.mkdir(parents=True)
    save_weights.save_weights(workdir, 0, params)
    json_files.write_json(
        workdir / model_card.CARD_FILE, model_card.build_card(ModelSpec(SIZES, pretrained=True))
    )


def figures(given: argparse.Namespace, taps: tuple[int, ...], seed: int) -> list[float]:
    """T2V and V2T R@1 of HVP-Net trained from the pretrained CLIP, by the command people use."""
    workdir = given.out / f"taps{len(taps)}_seed{seed}"
    command = [sys.executable, "run.py", "train", "--config=configs/demo.py", "--json"]
    command += [f"--config.data.root={given.out / 'clips'}", f"--workdir={workdir}"]
    command += [f"--config.model.weights={given.out / 'clip'}", f"--config.model.taps={taps}"]
    command += [
        f"--config.optim.learning_rate={RATE}",
        f"--config.optim.clip_learning_rate={given.clip_rate}",
    ]
    command += ["--config.train.steps=200", "--config.train.eval_every=200"]
    command += [f"--config.seed={seed}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return [result[way]["R@1"] for way in ("text_to_video", "video_to_text")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clip_rate", type=float, default=RATE / 100)
    given = parser.parse_args()
    given.out = given.out.absolute()
    pretrain(given.out / "clips", given.out / "clip", given.steps)
    found = {taps: [figures(given, taps, s) for s in range(given.seeds)] for taps in (LAST, THREE)}
    for taps, of_seeds in found.items():
        mean = np.mean(of_seeds, axis=0)
        seeds = ", ".join(f"{t2v:.1f} / {v2t:.1f}" for t2v, v2t in of_seeds)
        print(f"taps {taps}: T2V / V2T R@1 {mean[0]:.1f} / {mean[1]:.1f} (seeds: {seeds})")


if __name__ == "__main__":
    main()

"""Which term of the score helps at which tap: R@1 of each alone, and of the sum without it.

    python benchmarks/score_parts.py RUN [RUN ...]

RUN are workdirs of finished runs of one setting, such as `DIR/runs/SETTING/seed-*` of a sweep.
Prints means over the runs, text to video / video to text, on the split `eval.split`.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data import inputs, splits
from hvp_jax.config import overrides
from hvp_jax.config.resolve import resolve
from hvp_jax.evaluation import metrics
from hvp_jax.evaluation.scorer import Scorer
from hvp_jax.models.hvpnet import from_config
from hvp_jax.models.similarity import scores, terms_of
from hvp_jax.parallel import libtpu
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.training import resume
from hvp_jax.weights import initial


def score_parts(workdir: Path) -> tuple[Float[np.ndarray, "terms taps texts clips"], list, list]:
    """The scores of a run's test captions and clips, the clip of each caption, and the names."""
    config = overrides.load_json(workdir / "config.json")
    weights = initial.find_initial_weights(config, workdir)
    config = resolve(config, weights.spec)
    model = from_config(config, weights.spec.clip_config)
    partitioner = Partitioner(config.parallel)
    clips, _ = inputs.read_data(config, ())
    clips = splits.clips_of_split(clips, config.eval.split)
    source = inputs.open_frame_source(config, model.clip_config.image_size, clips)
    frames = inputs.padded_num_frames(config, source, resume.recorded_num_frames(workdir))
    scorer = Scorer(model, config, partitioner, num_frames=frames)
    params = initial.init_or_load_params(weights, model, config.seed)
    params = partitioner.replicate_params(partitioner.shard_state(params))
    text = scorer.encode_texts(params, clips)
    video = scorer.encode_videos(params, clips, np.arange(len(clips)), source)
    parts = jax.jit(lambda t, v: scores(t, v, None, 16))(text, video)
    video_of_text = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
    return np.asarray(parts), video_of_text, [terms_of(video), list(model.taps)]


def recall(matrix: np.ndarray, video_of_text: np.ndarray) -> np.ndarray:
    """R@1, text to video and video to text."""
    both = metrics.text_to_video, metrics.video_to_text
    return np.array([metric(matrix, video_of_text)["R@1"] for metric in both])


def main() -> None:
    libtpu.quiet_without_chips()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir", type=Path, nargs="+")
    runs = [score_parts(workdir) for workdir in parser.parse_args().workdir]
    terms, taps = runs[0][2]

    def show(select) -> str:
        mean = np.mean([recall(select(parts), of_text) for parts, of_text, _ in runs], axis=0)
        return "{:.1f} / {:.1f}".format(*mean)

    print(f"all together: {show(lambda x: x.sum((0, 1)))}\n")
    head = [f"layer {tap}" for tap in taps]
    print("| | " + " | ".join([*head, *(f"without {name}" for name in head)]) + " |")
    print("| --- |" + " ---: |" * 2 * len(head))
    for i, term in enumerate(terms):
        alone = [show(lambda x, i=i, j=j: x[i, j]) for j in range(len(taps))]
        without = [show(lambda x, i=i, j=j: x.sum((0, 1)) - x[i, j]) for j in range(len(taps))]
        print(f"| {term} | " + " | ".join([*alone, *without]) + " |")


if __name__ == "__main__":
    main()

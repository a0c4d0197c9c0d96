"""`train` itself, fed with the clips and the order of a golden run, writes PyTorch's curve.

Without `quick_compile`: two hundred steps would take longer than is saved.
"""

import functools
import json

import grain
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from data import inputs
from data.batches import eval_batches, pipeline
from data.batches.pairs import Pairs
from data.records import Clip
from hvp_jax.cli import main
from hvp_jax.cli.verbs import train
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.parity.runs import golden_run
from hvp_jax.parity.runs.golden_run import GoldenRun
from hvp_jax.weights import initial
from tests.helpers.golden_runs import RUN, load_run


class RunFrames:
    """The frames of a golden run; a clip's id is its number."""

    def __init__(self, run: GoldenRun):
        self.run = run
        self.size, self.longest = run.clip_config.image_size, run.arrays["data/video"].shape[1]

    def __getitem__(self, clip_id: str) -> np.ndarray:
        i = int(clip_id)
        return self.run.arrays["data/video"][i, : self.run.arrays["data/video_frames"][i]]


def clips_of(run: GoldenRun) -> list[Clip]:
    """The clips of both splits; a caption is its number in the file."""
    clip_of_caption = run.arrays["data/clip_of_caption"]
    clips = []
    for split in ("train", "test"):
        for i in range(*run.metadata[split]["clips"]):
            captions = tuple(str(k) for k in np.flatnonzero(clip_of_caption == i))
            clips.append(Clip(str(i), "", captions, split))
    return clips


@pytest.fixture
def golden_data(monkeypatch):
    """Replaces what `train` reads: the clips, their tokens and frames, and the order of pairs."""
    run = golden_run.open_run(RUN, *load_run())
    source = RunFrames(run)

    def tokenize(captions, max_words):
        texts = run.texts(np.array([int(caption) for caption in captions]))
        return texts.text_ids[:, :max_words], texts.text_mask[:, :max_words]

    def numbered_batches(clips, source, num_frames, max_words, *, batch_size, **options):
        captions = [caption for clip in clips for caption in clip.captions]
        read = pipeline.ReadPairs(
            videos=pipeline.ReadVideos(
                source=source,
                clip_ids=[clip.clip_id for clip in clips],
                num_frames=num_frames,
                batch_size=batch_size,
            ),
            pairs=Pairs.of_clips(clips, options["sampling"], options["seed"]),
            max_words=max_words,
            epoch_batches=len(run.arrays["batches"]),
            host_index=0,
            host_count=1,
            with_clip_ids=options["with_clip_ids"],
        )
        position = {int(caption): i for i, caption in enumerate(captions)}
        order = [np.array([position[k] for k in row]) for row in run.arrays["batches"].tolist()]
        return grain.MapDataset.source(order).repeat().map_with_index(read)

    monkeypatch.setattr(inputs, "read_data", lambda *_: (clips_of(run), []))
    monkeypatch.setattr(inputs, "open_frame_source", lambda *_: source)
    monkeypatch.setattr(pipeline, "numbered_batches", numbered_batches)
    monkeypatch.setattr(pipeline, "tokenize", tokenize)
    monkeypatch.setattr(eval_batches, "tokenize", tokenize)
    monkeypatch.setattr(initial, "VOCAB_SIZE", run.clip_config.vocab_size)
    one_device = functools.partial(Partitioner, devices=jax.devices()[:1])  # it is the fastest here
    monkeypatch.setattr(train, "Partitioner", one_device)
    return run


def test_train_writes_the_curve_and_the_metrics_of_pytorch(golden_data, tmp_path, capfd):
    run, optimizer = golden_data, golden_data.metadata["optimizer"]
    weights = tmp_path / "weights.safetensors"
    save_file(golden_run.state_of(run.arrays), weights)
    workdir = tmp_path / "run"
    before = jax.config.jax_enable_x64
    try:
        status = main.main(
            [
                *("train", "--config=configs/folder.py:reference", "--json"),
                f"--workdir={workdir}",
                f"--config.model.weights={weights}",
                "--config.precision=float64",
                f"--config.model.taps={','.join(map(str, run.taps))}",
                "--config.distillation.noise=never",
                f"--config.data.max_frames={run.arrays['data/video'].shape[1]}",
                f"--config.data.max_words={run.arrays['data/text_ids'].shape[1]}",
                f"--config.optimizer.learning_rate={optimizer['lr']}",
                f"--config.optimizer.clip_learning_rate={optimizer['lr'] * optimizer['coef_lr']}",
                "--config.optimizer.schedule_epochs=0",
                f"--config.train.batch_size={run.batch_size}",
                f"--config.train.steps={run.steps}",
                "--config.train.eval_every=200",
                "--config.train.checkpoint_every=100",
                "--config.train.log_every=1",
                "--config.eval.batch_size=16",
            ]
        )
    finally:
        jax.config.update("jax_enable_x64", before)
    captured = capfd.readouterr()
    assert status == 0, captured.err
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, run.steps + 1))
    for name, values in {
        "loss/curve": [row["loss"] for row in rows],
        "loss/word_patch": [
            sum(row[f"loss/word_patch/tap{i}"] for i in range(len(run.taps))) for row in rows
        ],
        "grad_norm": [row["grad_norm"] for row in rows],
        "lr_factor": [row["learning_rate"] / optimizer["lr"] for row in rows],
        "logit_scale": [row["log_scale"] for row in rows],
    }.items():
        golden = run.expected[name]
        np.testing.assert_allclose(values, golden, rtol=0, atol=1e-12 * golden.max(), err_msg=name)
    result = json.loads((workdir / "eval.json").read_text())
    assert result["scoring"]["contains_the_answer"]  # in the form of the original
    for direction, recorded in (
        ("text_to_video", run.metadata["metrics_t2v"]),
        ("video_to_text", run.metadata["metrics_v2t"]),
    ):
        assert result[direction]["R@1"] == recorded["R1"]
        assert result[direction]["MnR"] == recorded["MeanR"]

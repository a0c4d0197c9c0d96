"""Times the input pipeline against a PyTorch one like the original's, on one core each.

    python benchmarks/input_peer.py FOLDER [SHARDS]

FOLDER holds videos/ and captions.csv; SHARDS is what `prepare` wrote of it (by default it is
made in a temporary folder). The PyTorch side is a Dataset for a DataLoader: OpenCV decodes one
frame per second, Pillow resizes (bicubic) and crops, PyTorch normalises and collates. Needs
torch and opencv-python-headless, which nothing else here does. The sides alternate; rates are
by processor time.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from data import inputs, splits
from data.batches import frame_sources, pipeline
from data.records import (
    Clip,
    DatasetLocation,
)
from data.shards import prepare
from hvp_jax.models.layers import PIXEL_MEAN, PIXEL_STD

SIZE, FRAMES, WORDS, BATCH, REPEATS = 224, 12, 24, 32, 5


class TorchDataset(Dataset):
    def __init__(self, clips: list[Clip]) -> None:
        self.clips = clips
        self.mean = torch.tensor(PIXEL_MEAN)[:, None, None]
        self.std = torch.tensor(PIXEL_STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        video, mask = torch.zeros(FRAMES, 3, SIZE, SIZE), torch.zeros(FRAMES)
        for k, frame in enumerate(self.frames(self.clips[i].path)):
            scaled = torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 255
            video[k], mask[k] = (scaled - self.mean) / self.std, 1
        return video, mask

    def frames(self, path: str) -> list[Image.Image]:
        """One frame per second, at most FRAMES of them, decoded in order."""
        capture = cv2.VideoCapture(path)
        interval = max(round(capture.get(cv2.CAP_PROP_FPS) or 25), 1)
        frames, index = [], 0
        while capture.grab():
            if index % interval == 0:
                ok, frame = capture.retrieve()
                if ok:
                    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    frames.append(self.crop(Image.fromarray(rgb)))
            index += 1
        capture.release()
        chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames)), dtype=int)
        return [frames[k] for k in chosen]

    def crop(self, frame: Image.Image) -> Image.Image:
        short = min(frame.size)
        width, height = (int(SIZE * side / short) for side in frame.size)
        left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
        resized = frame.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + SIZE, top + SIZE))


def main(folder: str, shard_folder: str) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    clips = inputs.read_dataset(DatasetLocation("folder", root=folder))
    if not prepare.finished(shard_folder):
        prepare.prepare(clips, shard_folder, SIZE, FRAMES)
    clips = splits.clips_of_split(clips, "train")
    sources = {
        "JAX, files": frame_sources.FileFrames(clips, SIZE, FRAMES),
        "JAX, shards": frame_sources.ShardFrames(shard_folder, clips, SIZE, FRAMES),
    }
    # Indexed rather than iterated: an iterator would prefetch during the others' time.
    pipelines = {
        name: pipeline.numbered_batches(
            clips, source, FRAMES, WORDS, batch_size=BATCH, seed=0
        ).__getitem__
        for name, source in sources.items()
    }
    sampler = torch.randint(len(clips), (10_000,))
    loader = iter(DataLoader(TorchDataset(clips), BATCH, sampler=sampler))
    pipelines["PyTorch"] = lambda i: next(loader)
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for i in range(REPEATS + 1):
        for name, make_batch in pipelines.items():
            begin = time.process_time()
            make_batch(i)
            if i:  # the first one warms up
                times[name].append(time.process_time() - begin)
    rates = {name: BATCH / statistics.median(seconds) for name, seconds in times.items()}
    for name, rate in rates.items():
        print(f"{name:<14}{rate:8.0f} clips/s per core  {rate / rates['PyTorch']:6.1f} x PyTorch")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else scratch)

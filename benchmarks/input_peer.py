"""Our input pipeline beside a PyTorch one of the original's kind, in turn, on one core each.

    python benchmarks/input_peer.py FOLDER [SHARDS]

FOLDER holds videos/ and captions.csv; SHARDS is what `prepare` wrote of it (made beside it in
a temporary folder if not given). The peer is a Dataset for a DataLoader: OpenCV decodes a frame
a second, Pillow resizes (bicubic) and crops, PyTorch normalises and collates. Needs torch and
opencv-python-headless, which nothing else here does. Rates are by processor time.
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

from data import inputs, splits
from data.batches import frame_sources, pipeline
from data.records import DatasetLocation
from data.shards import prepare
from hvp_jax.models.hvpnet import PIXEL_MEAN, PIXEL_STD

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZE, FRAMES, WORDS, BATCH, REPEATS = 224, 12, 24, 32, 5


class Peer(Dataset):
    def __init__(self, clips):
        self.clips = clips
        self.mean = torch.tensor(PIXEL_MEAN)[:, None, None]
        self.std = torch.tensor(PIXEL_STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int):
        video, mask = torch.zeros(FRAMES, 3, SIZE, SIZE), torch.zeros(FRAMES)
        for k, picture in enumerate(self.pictures(self.clips[i].path)):
            scaled = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
            video[k], mask[k] = (scaled - self.mean) / self.std, 1
        return video, mask

    def pictures(self, path: str) -> list[Image.Image]:
        """A frame a second, at most FRAMES of them, as read one after another."""
        capture = cv2.VideoCapture(path)
        every = max(round(capture.get(cv2.CAP_PROP_FPS) or 25), 1)
        taken, number = [], 0
        while capture.grab():
            if number % every == 0:
                found, frame = capture.retrieve()
                if found:
                    taken.append(self.crop(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))))
            number += 1
        capture.release()
        keep = np.linspace(0, len(taken) - 1, min(FRAMES, len(taken)), dtype=int)
        return [taken[k] for k in keep]

    def crop(self, picture: Image.Image) -> Image.Image:
        short = min(picture.size)
        width, height = (int(SIZE * side / short) for side in picture.size)
        left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + SIZE, top + SIZE))


def main(folder: str, shard_folder: str) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    clips = inputs.read_dataset(DatasetLocation("folder", root=folder))
    if not prepare.finished(shard_folder):
        prepare.prepare(clips, shard_folder, SIZE, FRAMES)
    clips = splits.clips_of_split(clips, "train")
    ours = {
        "ours, files": frame_sources.FileFrames(clips, SIZE, FRAMES),
        "ours, shards": frame_sources.ShardFrames(shard_folder, clips, SIZE, FRAMES),
    }
    batches = {
        name: pipeline.numbered_batches(clips, source, FRAMES, WORDS, batch_size=BATCH, seed=0)
        for name, source in ours.items()
    }
    # By number: an iterator would work ahead, on the time of the others.
    ways = {name: numbered.__getitem__ for name, numbered in batches.items()}
    loader = iter(DataLoader(Peer(clips), BATCH, sampler=torch.randint(len(clips), (10_000,))))
    ways["PyTorch"] = lambda i: next(loader)
    times = {name: [] for name in ways}
    for i in range(REPEATS + 1):
        for name, make in ways.items():
            begin = time.process_time()
            make(i)
            if i:
                times[name].append(time.process_time() - begin)
    rates = {name: BATCH / statistics.median(seconds) for name, seconds in times.items()}
    for name, rate in rates.items():
        print(f"{name:<14}{rate:8.0f} clips/s a core  {rate / rates['PyTorch']:6.1f} x PyTorch")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else scratch)

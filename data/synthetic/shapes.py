"""The built-in clips: H.264 files of moving shapes with captions, in the `folder` format.

A clip shows one shape and has six attributes: colour, shape, motion, size, texture, backdrop. The
combination of the first four in a test or val clip never occurs in train, though each value does,
and no two test clips share it: a test caption names all, so it matches one clip of the gallery.

HVP-Net takes the frames of a clip as a set, so a direction has to be visible in a single
frame: moving shapes leave a fading trail.
"""

import csv
import itertools
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import av
import numpy as np

from data.errors import UsageError
from data.storage import files as storage
from data.storage import listing
from data.storage.path import is_bucket
from data.synthetic.drawing import (
    BACKDROPS,
    COLOURS,
    RADII,
    RATE,
    SHAPES,
    SIDE,
    TEXTURES,
    Scene,
    draw,
)

WORDS = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "plain": ("plain", "solid"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
}
PHRASES = {  # motion -> pairs for {does} and {doing} of TEMPLATES
    "right": (
        ("moves from left to right", "moving from left to right"),
        ("slides to the right", "sliding to the right"),
    ),
    "up": (("moves upwards", "moving upwards"), ("rises to the top", "rising to the top")),
    "round": (
        ("goes round and round", "going round and round"),
        ("orbits the middle", "orbiting the middle"),
    ),
    "zigzag": (("moves in a zigzag", "moving in a zigzag"), ("zigzags", "zigzagging")),
    "blink": (("blinks", "blinking"), ("appears and disappears", "flashing on and off")),
    "pulse": (("grows and shrinks", "growing and shrinking"), ("pulsates", "pulsating")),
}
TEMPLATES = (
    "a {size} {texture} {colour} {shape} {does} on {backdrop}",
    "on {backdrop}, a {size} {colour} {shape} that is {texture} {does}",
    "there is a {size} {texture} {shape} in {colour} on {backdrop}, {doing}",
    "a {texture} {shape}, {size} and {colour}, is {doing} on {backdrop}",
    "a video of a {size} {texture} {colour} {shape} {doing} on {backdrop}",
)


def make_dataset(
    root: str, seed: int = 0, *, train: int = 1200, val: int = 50, test: int = 200
) -> None:
    """Writes `root`/videos and `root`/captions.csv; `root` appears only when it is complete.

    The same seed gives the same frames and captions. Raises UsageError if `root` exists and is
    not an empty directory.
    """
    if is_bucket(root):
        return _make_in_bucket(root, seed, train=train, val=val, test=test)
    root = os.path.abspath(root)
    if os.path.exists(root) and (not os.path.isdir(root) or os.listdir(root)):
        raise UsageError(f"{root}: is not empty; name a new directory for the built-in clips")
    try:
        os.makedirs(os.path.dirname(root), exist_ok=True)
        partial = tempfile.mkdtemp(prefix=os.path.basename(root) + ".", dir=os.path.dirname(root))
    except OSError as error:
        raise UsageError(
            f"{root}: cannot write the built-in clips there: {error.strerror}"
        ) from None
    try:
        _write_all(partial, seed, _scenes(seed, {"test": test, "val": val, "train": train}))
        os.chmod(partial, 0o755)
        os.rename(partial, root)
    except OSError as error:
        # Unless another process has written it meanwhile.
        if not os.path.exists(os.path.join(root, "captions.csv")):
            raise UsageError(
                f"{root}: cannot write the built-in clips there: {error.strerror or error}"
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_in_bucket(root: str, seed: int, **counts: int) -> None:
    """The same; `captions.csv` is the last object to appear."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, "shapes")
        make_dataset(local, seed, **counts)
        videos = [f"videos/{name}" for name in storage.names(os.path.join(local, "videos"))]

        def upload(name: str) -> None:
            storage.upload(os.path.join(local, name), f"{root.rstrip('/')}/{name}")

        try:
            with ThreadPoolExecutor(listing.THREADS) as pool:
                list(pool.map(upload, videos))
            upload("captions.csv")
        except OSError as error:
            raise UsageError(
                f"{root}: cannot write the built-in clips there: {error.strerror}"
            ) from None


def _scenes(seed: int, counts: dict[str, int]) -> list[tuple[str, Scene]]:
    """(split, scene) of every clip; train uses the combinations that test and val do not."""
    rng = np.random.default_rng(seed)
    combinations = list(itertools.product(COLOURS, SHAPES, PHRASES, RADII))
    combinations = [combinations[i] for i in rng.permutation(len(combinations))]
    held_out = counts["test"] + counts["val"]
    if held_out > len(combinations) // 2:
        raise UsageError(
            f"{held_out} test and val clips; at most {len(combinations) // 2} are possible"
        )
    rest = combinations[held_out:]
    chosen = combinations[:held_out] + [rest[i % len(rest)] for i in range(counts["train"])]
    splits = [split for split, count in counts.items() for _ in range(count)]
    textures = rng.choice(list(TEXTURES), len(chosen))
    backdrops = rng.choice(list(BACKDROPS), len(chosen))
    return [
        (split, Scene(*four, str(texture), str(backdrop)))
        for split, four, texture, backdrop in zip(splits, chosen, textures, backdrops, strict=True)
    ]


def _write_all(folder: str, seed: int, scenes: list[tuple[str, Scene]]) -> None:
    os.mkdir(os.path.join(folder, "videos"))
    jobs = [
        (os.path.join(folder, "videos", f"clip{i:04d}.mp4"), scene, (seed, i))
        for i, (_, scene) in enumerate(scenes)
    ]
    # Spawned, not forked: the fork of a process with threads may deadlock.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_write_clip, jobs, chunksize=16):
            pass
    with open(os.path.join(folder, "captions.csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video_id", "caption", "split"])
        for i, (split, scene) in enumerate(scenes):
            for caption in captions(scene, 2 if split == "train" else 1, (seed, i, 1)):
                writer.writerow([f"clip{i:04d}", caption, split])


def captions(scene: Scene, count: int, seed: tuple[int, ...]) -> list[str]:
    """`count` captions from different templates, each naming all six attributes."""
    rng = np.random.default_rng(seed)
    lines = []
    for template in rng.choice(TEMPLATES, count, replace=False):
        does, doing = rng.permutation(PHRASES[scene.motion])[0]
        size, texture = (str(rng.choice(WORDS[word])) for word in (scene.size, scene.texture))
        lines.append(
            str(template).format(
                colour=scene.colour,
                shape=scene.shape,
                size=size,
                texture=texture,
                backdrop=scene.backdrop,
                does=does,
                doing=doing,
            )
        )
    return lines


def _write_clip(job: tuple[str, Scene, tuple[int, int]]) -> None:
    path, scene, seed = job
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        # Without cpu-independent about one clip in a hundred differs slightly between CPUs.
        stream.options = {"preset": "veryfast", "crf": "20", "threads": "1"}
        stream.options |= {"x264-params": "cpu-independent=1"}
        for pixels in draw(scene, seed):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

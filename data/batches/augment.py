"""Augmentation of training clips: RandAugment, random resized crop and flip.

Operations and their arguments are sampled once per clip and applied to all of its frames. The
samples depend only on the run's seed and the position of the example in the training stream.
So the pixels are the same in a resumed run, and for any number of workers and hosts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from data.errors import UsageError

BICUBIC = Image.Resampling.BICUBIC
FILL = (123, 117, 104)  # CLIP's mean colour, for pixels from outside the image
APPLY_PROBABILITY = 0.5  # of each chosen operation
MAX_MAGNITUDE = 10  # a level is magnitude / MAX_MAGNITUDE
MAX_RATIO = 4 / 3  # of the sides of a random crop, either way
CROP_ATTEMPTS = 10
PIXEL = "V3"  # a dtype that makes NumPy move the three bytes of a pixel as one item

FORMAT = re.compile(r"rand-m(\d+)-n(\d+)-mstd(\d+(?:\.\d+)?)-inc1")


class RandAugment(NamedTuple):
    """`num_operations` per clip, with magnitudes from a normal distribution."""

    magnitude: int  # the mean
    num_operations: int
    deviation: float  # the standard deviation


def parse(text: str) -> RandAugment:
    """Parses a timm policy such as `rand-m7-n4-mstd0.5-inc1`.

    inc1 is the set of operations that become stronger with the magnitude. Raises UsageError
    if the text has another form or a number is out of range.
    """
    if match := FORMAT.fullmatch(text):
        parsed = RandAugment(int(match[1]), int(match[2]), float(match[3]))
        if max(parsed.magnitude, parsed.deviation) <= MAX_MAGNITUDE and parsed.num_operations >= 1:
            return parsed
    raise UsageError(
        f"{text!r} is not of the form rand-m7-n4-mstd0.5-inc1 (m from 0 to {MAX_MAGNITUDE}, "
        f"n from 1, mstd from 0 to {MAX_MAGNITUDE})"
    )


class Operation(NamedTuple):
    """`argument` maps a level in [0, 1] and a sign, 1 or -1, to the argument of `apply`."""

    name: str
    apply: Callable[[Image.Image, float], Image.Image]
    argument: Callable[[float, int], float]


class _Resampling(NamedTuple):
    """How to shear or translate an image along one axis, by cubic interpolation."""

    indices: np.ndarray  # of source pixels; along the axis there are S + 3
    weights: list[np.ndarray]  # of the four neighbours, for each line
    windows: list[Any]  # the slice of the source that holds each neighbour
    outside: np.ndarray  # [S, S] bool: the source position is outside the image


@functools.lru_cache(maxsize=32)  # for all frames of a clip; several threads augment clips
def _resampling(size: int, vertical: bool, shear: float, shift: float) -> _Resampling:
    lines = np.arange(size)[:, None]
    offsets = shear * (lines + 0.5) + shift  # [S, 1]
    whole = np.floor(offsets).astype(int)
    along = np.clip(np.arange(-1, size + 2) + whole, 0, size - 1)  # edge pixels are repeated
    source = np.arange(size) + 0.5 + offsets
    outside = (source < 0) | (source >= size)
    a = (offsets - whole).astype(np.float32)
    b = 1 - a
    weights = [-a * b * b, 1 - 2 * a * a + a**3, 1 - 2 * b * b + b**3, -a * a * b]
    windows: list[Any]
    if not vertical:
        windows = [np.s_[:, 3 * i : 3 * (size + i)] for i in range(4)]
        return _Resampling(lines * size + along, weights, windows, outside)
    windows = [np.s_[i : size + i] for i in range(4)]
    weights = [weight.repeat(3)[None] for weight in weights]
    indices = np.ascontiguousarray((along * size + lines).T)
    return _Resampling(indices, weights, windows, outside.T)


def _move(image: Image.Image, vertical: bool, shear: float, shift: float) -> Image.Image:
    """Pixel (x, y) of the result is the pixel at (x + shear y + shift, y) of a square image.

    If `vertical`, that at (x, y + shear x + shift). The same as Pillow's bicubic `transform`,
    which interpolates along both axes and takes three times as long; a few values in a
    thousand are rounded differently, by 1.
    """
    pixels = np.asarray(image)  # [S, S, 3]
    indices, weights, windows, outside = _resampling(len(pixels), vertical, shear, shift)
    source = pixels.reshape(-1, 3).view(PIXEL)[:, 0].take(indices)
    source = source.view(np.uint8).astype(np.float32)  # [S, 3 (S + 3)], or [S + 3, 3 S]
    mixed = source[windows[0]] * weights[0]
    for window, weight in zip(windows[1:], weights[1:], strict=True):
        mixed += source[window] * weight
    mixed += 1e-4  # values are truncated below as in Pillow; constant areas must stay constant
    moved = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8).reshape(pixels.shape)
    moved.view(PIXEL)[outside] = np.array(FILL, np.uint8).view(PIXEL)
    return Image.fromarray(moved)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # ImageOps.posterize does not accept 0 bits, which the highest magnitude needs.
    shift = 8 - int(bits)
    return image.point([value >> shift << shift for value in range(256)] * 3)


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    table = [min(255, value + int(add)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _no_argument(level: float, sign: int) -> float:
    del level, sign
    return 0.0


def _strength(level: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.9 * level)  # 1: unchanged; 0: grey, black or blurred


# The operations of timm's `rand-...-inc1`.
OPERATIONS = (
    Operation("AutoContrast", lambda im, _: ImageOps.autocontrast(im), _no_argument),
    Operation("Equalize", lambda im, _: ImageOps.equalize(im), _no_argument),
    Operation("Invert", lambda im, _: ImageOps.invert(im), _no_argument),
    Operation(
        "Rotate",  # degrees
        lambda im, x: im.rotate(x, BICUBIC, fillcolor=FILL),
        lambda level, sign: sign * 30 * level,
    ),
    Operation("Posterize", _posterize, lambda level, _: float(4 - int(4 * level))),  # bits kept
    Operation(
        "Solarize",
        lambda im, x: ImageOps.solarize(im, int(x)),
        lambda level, _: float(256 - int(256 * level)),
    ),
    Operation("SolarizeAdd", _solarize_add, lambda level, _: float(int(110 * level))),
    Operation("Color", lambda im, x: ImageEnhance.Color(im).enhance(x), _strength),
    Operation("Contrast", lambda im, x: ImageEnhance.Contrast(im).enhance(x), _strength),
    Operation("Brightness", lambda im, x: ImageEnhance.Brightness(im).enhance(x), _strength),
    Operation("Sharpness", lambda im, x: ImageEnhance.Sharpness(im).enhance(x), _strength),
    Operation(
        "ShearX",
        lambda im, x: _move(im, False, x, 0.0),
        lambda level, sign: sign * 0.3 * level,
    ),
    Operation(
        "ShearY",
        lambda im, x: _move(im, True, x, 0.0),
        lambda level, sign: sign * 0.3 * level,
    ),
    Operation(
        "TranslateX",  # fraction of the width
        lambda im, x: _move(im, False, 0.0, x * im.width),
        lambda level, sign: sign * 0.45 * level,
    ),
    Operation(
        "TranslateY",
        lambda im, x: _move(im, True, 0.0, x * im.height),
        lambda level, sign: sign * 0.45 * level,
    ),
)


def sample_operations(rand: RandAugment, rng: np.random.Generator) -> list[tuple[Operation, float]]:
    """The operations for one clip, in order, each with its argument.

    They are chosen uniformly with replacement; each is applied with APPLY_PROBABILITY.
    """
    n = rand.num_operations
    chosen = rng.integers(len(OPERATIONS), size=n)
    applied = rng.random(n) < APPLY_PROBABILITY
    magnitudes = rng.normal(rand.magnitude, rand.deviation, n)
    levels = np.clip(magnitudes, 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    signs = rng.choice((1, -1), n)
    samples = zip(*(x[applied].tolist() for x in (chosen, levels, signs)), strict=True)
    return [(OPERATIONS[i], OPERATIONS[i].argument(level, sign)) for i, level, sign in samples]


def sample_crop(size: int, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop of a square image, in pixels.

    The crop's share of the area is uniform in [min_area, 1], the logarithm of its aspect ratio
    uniform up to MAX_RATIO either way. The full image if no such crop fits in CROP_ATTEMPTS.
    """
    sides = size * np.sqrt(rng.uniform(min_area, 1, CROP_ATTEMPTS))
    skews = np.exp(rng.uniform(-0.5, 0.5, CROP_ATTEMPTS) * math.log(MAX_RATIO))
    for width, height in np.rint([sides * skews, sides / skews]).astype(int).T.tolist():
        if width <= size and height <= size:
            left, top = (int(rng.integers(size - side + 1)) for side in (width, height))
            return left, top, left + width, top + height
    return 0, 0, size, size


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augments the frames of a clip, by the position of the example in the training stream.

    Flip, then crop, then RandAugment.
    """

    seed: int
    rand: RandAugment | None = None
    crop: float = 1.0  # the minimum share of the area that is kept
    flip: bool = False

    def __call__(
        self, frames: UInt8[np.ndarray, "n s s 3"], position: int
    ) -> UInt8[np.ndarray, "n s s 3"]:
        # A Philox key is two numbers: every example of every seed has its own random stream.
        key = np.array([self.seed, position], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        size = frames.shape[1]
        box = sample_crop(size, self.crop, rng) if self.crop < 1 else None
        mirror = self.flip and rng.random() < 0.5
        operations = sample_operations(self.rand, rng) if self.rand else []
        if not (box or mirror or operations):
            return frames

        def augmented(frame: np.ndarray) -> np.ndarray:
            image = Image.fromarray(frame)
            if mirror:
                image = ImageOps.mirror(image)
            if box:
                image = image.resize((size, size), BICUBIC, box)
            for operation, argument in operations:
                image = operation.apply(image, argument)
            return np.asarray(image)

        return np.stack([augmented(frame) for frame in frames])


def open_augment(seed: int, rand_augment: str, crop: float, flip: bool) -> Augment | None:
    """The augmentation of the config keys `augment.*`, if any. Raises what `parse` raises."""
    if not rand_augment and crop == 1 and not flip:
        return None
    return Augment(seed, parse(rand_augment) if rand_augment else None, crop, flip)

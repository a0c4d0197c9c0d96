"""Augmentation of training clips: RandAugment, random resized crop and flip, one draw a clip.

All frames of a clip go through the same operations with the same arguments. What is drawn
depends on nothing but the run's seed and the place of the example in the training stream,
so a resumed run, and any number of workers and hosts, see the same pixels.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from data.errors import UsageError

BICUBIC = Image.Resampling.BICUBIC
FILL = (123, 117, 104)  # CLIP's mean colour, for what comes into view from beyond the edge
APPLIED = 0.5  # chance of each chosen operation
TOP = 10  # the highest magnitude; a level is a magnitude / TOP
RATIO = 4 / 3  # of the sides of a random crop, at most, either way
TRIES = 10  # at a random crop that fits
PIXEL = "V3"  # three bytes that NumPy moves as one

FORM = re.compile(r"rand-m(\d+)-n(\d+)-mstd(\d+(?:\.\d+)?)-inc1")


class RandAugment(NamedTuple):
    """`count` operations a clip, of magnitudes from gauss(magnitude, deviation)."""

    magnitude: int
    count: int
    deviation: float


def parse(text: str) -> RandAugment:
    """`rand-m7-n4-mstd0.5-inc1` as what it says; inc1: the set that gets stronger with magnitude.

    Raises UsageError, naming the text, if it is of another form or outside the scale.
    """
    if found := FORM.fullmatch(text):
        parsed = RandAugment(int(found[1]), int(found[2]), float(found[3]))
        if parsed.magnitude <= TOP and parsed.count >= 1 and parsed.deviation <= TOP:
            return parsed
    raise UsageError(
        f"{text!r} is not of the form rand-m7-n4-mstd0.5-inc1 (m from 0 to {TOP}, n from 1, "
        f"mstd from 0 to {TOP})"
    )


Picture = Image.Image


class Operation(NamedTuple):
    """`argument` gives that of `apply` from a level in [0, 1] and a sign, 1 or -1."""

    name: str
    apply: Callable[[Picture, float], Picture]
    argument: Callable[[float, int], float]


@functools.lru_cache(maxsize=32)  # clips are augmented by several threads at a time
def _paths(size: int, down: bool, shear: float, shift: float):
    """Where the pixels of a slid picture come from: alike for all frames of a clip.

    The numbers of the source pixels, three more along the way than there are pixels; the
    four cubic weights of each line; the part of the source that each is of; and what lies
    beyond the edge [S, S].
    """
    lines = np.arange(size)[:, None]
    moves = shear * (lines + 0.5) + shift  # [S, 1]
    whole = np.floor(moves).astype(int)
    along = np.clip(np.arange(-1, size + 2) + whole, 0, size - 1)  # the edge goes on
    source = np.arange(size) + 0.5 + moves
    beyond = (source < 0) | (source >= size)
    a = (moves - whole).astype(np.float32)
    b = 1 - a
    weights = [-a * b * b, 1 - 2 * a * a + a**3, 1 - 2 * b * b + b**3, -a * a * b]
    if not down:
        parts = [np.s_[:, 3 * i : 3 * (size + i)] for i in range(4)]
        return lines * size + along, weights, parts, beyond
    parts = [np.s_[i : size + i] for i in range(4)]
    weights = [weight.repeat(3)[None] for weight in weights]
    return np.ascontiguousarray((along * size + lines).T), weights, parts, beyond.T


def _slide(image: Picture, down: bool, shear: float, shift: float) -> Picture:
    """The square picture whose pixel (x, y) is that at (x + shear y + shift, y).

    `down`: at (x, y + shear x + shift). As Pillow's bicubic `transform`, which interpolates
    both ways for it and takes three times as long; a few values in a thousand are rounded
    to their neighbour.
    """
    pixels = np.asarray(image)  # [S, S, 3]
    numbers, weights, parts, beyond = _paths(len(pixels), down, shear, shift)
    near = pixels.reshape(-1, 3).view(PIXEL)[:, 0].take(numbers)
    near = near.view(np.uint8).astype(np.float32)  # [S, 3 (S + 3)], or [S + 3, 3 S]
    mixed = near[parts[0]] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        mixed += near[part] * weight
    mixed += 1e-4  # Pillow truncates; what is constant shall stay so
    moved = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8).reshape(pixels.shape)
    moved.view(PIXEL)[beyond] = np.uint8(FILL).view(PIXEL)
    return Image.fromarray(moved)


def _posterize(image: Picture, bits: float) -> Picture:
    # ImageOps.posterize refuses to keep no bit, which the highest magnitude asks for.
    return image.point([value >> 8 - bits << 8 - bits for value in range(256)] * 3)


def _solarize_add(image: Picture, add: float) -> Picture:
    table = [min(255, value + add) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _none(level: float, sign: int) -> float:
    del level, sign
    return 0


def _strength(level: float, sign: int) -> float:
    return max(0.1, 1 + sign * 0.9 * level)  # 1: as it is; 0: grey, black or blurred


# The set of timm's `rand-...-inc1`.
OPERATIONS = (
    Operation("AutoContrast", lambda im, _: ImageOps.autocontrast(im), _none),
    Operation("Equalize", lambda im, _: ImageOps.equalize(im), _none),
    Operation("Invert", lambda im, _: ImageOps.invert(im), _none),
    Operation(
        "Rotate",  # degrees
        lambda im, x: im.rotate(x, BICUBIC, fillcolor=FILL),
        lambda level, sign: sign * 30 * level,
    ),
    Operation("Posterize", _posterize, lambda level, _: 4 - int(4 * level)),  # bits kept
    Operation("Solarize", ImageOps.solarize, lambda level, _: 256 - int(256 * level)),
    Operation("SolarizeAdd", _solarize_add, lambda level, _: int(110 * level)),
    Operation("Color", lambda im, x: ImageEnhance.Color(im).enhance(x), _strength),
    Operation("Contrast", lambda im, x: ImageEnhance.Contrast(im).enhance(x), _strength),
    Operation("Brightness", lambda im, x: ImageEnhance.Brightness(im).enhance(x), _strength),
    Operation("Sharpness", lambda im, x: ImageEnhance.Sharpness(im).enhance(x), _strength),
    Operation(
        "ShearX",
        lambda im, x: _slide(im, False, x, 0),
        lambda level, sign: sign * 0.3 * level,
    ),
    Operation(
        "ShearY",
        lambda im, x: _slide(im, True, x, 0),
        lambda level, sign: sign * 0.3 * level,
    ),
    Operation(
        "TranslateX",  # share of the width
        lambda im, x: _slide(im, False, 0, x * im.width),
        lambda level, sign: sign * 0.45 * level,
    ),
    Operation(
        "TranslateY",
        lambda im, x: _slide(im, True, 0, x * im.height),
        lambda level, sign: sign * 0.45 * level,
    ),
)


def sample_operations(rand: RandAugment, rng: np.random.Generator) -> list[tuple[Operation, float]]:
    """The operations for one clip, in order, each with its argument.

    `rand.count` are chosen with replacement, all alike, and each is kept with chance APPLIED.
    """
    chosen = rng.integers(len(OPERATIONS), size=rand.count)
    applied = rng.random(rand.count) < APPLIED
    magnitudes = rng.normal(rand.magnitude, rand.deviation, rand.count)
    levels = np.clip(magnitudes, 0, TOP) / TOP
    signs = rng.choice((1, -1), rand.count)
    drawn = zip(*(x[applied].tolist() for x in (chosen, levels, signs)), strict=True)
    return [(OPERATIONS[i], OPERATIONS[i].argument(level, sign)) for i, level, sign in drawn]


def sample_crop(size: int, least: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random part of a square picture, in pixels.

    Its share of the area is uniform in [least, 1], the logarithm of its ratio of sides
    uniform up to RATIO either way; all of the picture if no such part fits in TRIES.
    """
    sides = size * np.sqrt(rng.uniform(least, 1, TRIES))
    skews = np.exp(rng.uniform(-0.5, 0.5, TRIES) * math.log(RATIO))
    for width, height in np.rint([sides * skews, sides / skews]).astype(int).T.tolist():
        if width <= size and height <= size:
            left, top = (int(rng.integers(size - side + 1)) for side in (width, height))
            return left, top, left + width, top + height
    return 0, 0, size, size


@dataclasses.dataclass(frozen=True)
class Augment:
    """Pictures uint8 [n, S, S, 3] and the place of their example -> other such pictures.

    Flip, then crop, then RandAugment. `crop` is the least share of the area that is kept.
    """

    seed: int
    rand: RandAugment | None = None
    crop: float = 1.0
    flip: bool = False

    def __call__(self, pictures: np.ndarray, position: int) -> np.ndarray:
        # A Philox key is two numbers, so every example of every run has a stream of its own.
        key = np.array([self.seed, position], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        size = pictures.shape[1]
        box = sample_crop(size, self.crop, rng) if self.crop < 1 else None
        mirror = self.flip and rng.random() < 0.5
        drawn = sample_operations(self.rand, rng) if self.rand else []
        if not (box or mirror or drawn):
            return pictures

        def changed(picture: np.ndarray) -> np.ndarray:
            image = Image.fromarray(picture)
            if mirror:
                image = ImageOps.mirror(image)
            if box:
                image = image.resize((size, size), BICUBIC, box)
            for operation, argument in drawn:
                image = operation.apply(image, argument)
            return np.asarray(image)

        return np.stack([changed(picture) for picture in pictures])


def open_augment(seed: int, rand_augment: str, crop: float, flip: bool) -> Augment | None:
    """What the keys `augment.*` ask for; None: nothing. Raises UsageError as `parse` does."""
    if not rand_augment and crop == 1 and not flip:
        return None
    return Augment(seed, parse(rand_augment) if rand_augment else None, crop, flip)

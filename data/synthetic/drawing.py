"""Draws the frames of one moving shape; `shapes.py` chooses the scenes and writes captions.

Lengths are in pixels, x to the right and y down.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIDE = 96
RATE = 4  # frames per second
SECONDS = (8, 12)  # shortest and longest clip
RADII = {"small": 15, "large": 29}
DARK = (16, 16, 20)  # the second colour of a texture
COLOURS = {
    "red": (225, 25, 30),
    "green": (25, 170, 50),
    "blue": (35, 60, 235),
    "yellow": (245, 225, 30),
    "orange": (250, 125, 10),
    "purple": (150, 35, 190),
    "cyan": (40, 220, 230),
    "white": (245, 245, 245),
    "pink": (250, 130, 190),
    "brown": (125, 75, 35),
}
BACKDROPS = {
    "grey": (95, 95, 95),
    "black": (28, 28, 28),
    "navy": (28, 36, 100),
    "maroon": (100, 28, 44),
    "teal": (22, 96, 96),
}
STATIONARY = ("blink", "pulse")  # all other motions leave a trail
TRAIL = ((2.0, 0.12), (1.5, 0.22), (1.0, 0.34), (0.5, 0.5))  # (seconds ago, opacity)


class Scene(NamedTuple):
    """The attributes of a clip that its captions name."""

    colour: str
    shape: str
    motion: str
    size: str
    texture: str
    backdrop: str


def draw(scene: Scene, seed: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yields the frames of a clip of 8 to 12 s, each uint8 [SIDE, SIDE, 3]. `seed` decides what
    captions don't name: lighting, tone, length, and the shape's initial position and speed."""
    rng = np.random.default_rng(seed)
    background = _background(scene.backdrop, rng)
    colour = np.array(COLOURS[scene.colour], np.float32)
    bright = np.clip(colour + rng.integers(-12, 13, 3), 0, 255).astype(np.float32)
    radius = RADII[scene.size]
    num_frames = int(rng.integers(SECONDS[0] * RATE, SECONDS[1] * RATE + 1))
    phase, across, speed = rng.uniform((0, 0, 0.85), (1, 1, 1.15))
    trail = () if scene.motion in STATIONARY else TRAIL
    sprites: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # radius -> coverage, colours
    for i in range(num_frames):
        seconds = i / RATE
        frame = background.copy()
        for ago, opacity in (*trail, (0.0, 1.0)):
            x, y, scale = _position(
                scene.motion, seconds * speed, ago * speed, radius, phase=phase, across=across
            )
            scaled = round(radius * scale)
            if not scaled:
                continue
            if scaled not in sprites:
                sprites[scaled] = _sprite(scene.shape, scene.texture, bright, scaled)
            coverage, colours = sprites[scaled]
            colours = colours if opacity == 1 else bright
            left, top = round(x) - scaled, round(y) - scaled
            _blend(frame, coverage * opacity, colours, left=left, top=top)
        yield (frame + 0.5).astype(np.uint8)


def _background(backdrop: str, rng: np.random.Generator) -> np.ndarray:
    """The backdrop's tone with a linear gradient of light and grain, float32 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    gradient = 12 * (math.cos(angle) * x + math.sin(angle) * y)
    grain = rng.normal(0, 2.5, (SIDE, SIDE))
    tone = np.add(BACKDROPS[backdrop], rng.uniform(-10, 10, 3))
    return np.clip(tone + (gradient + grain)[..., None], 0, 255).astype(np.float32)


def _position(
    motion: str, seconds: float, ago: float, radius: int, *, phase: float, across: float
) -> tuple[float, float, float]:
    """Centre x, y and scale at `seconds - ago`; scale 0 is invisible.

    `phase` and `across`, in [0, 1), choose the start along the motion and across it.
    """
    low, high = radius * 0.5, SIDE - radius * 0.5
    fixed = radius + across * (SIDE - 2 * radius)
    if motion in ("right", "up"):
        # Where the shape has just entered the frame, its trail continues outside.
        moving = low + (high - low) * ((phase + seconds / 6) % 1 - ago / 6)
        return (moving, fixed, 1.0) if motion == "right" else (fixed, SIDE - moving, 1.0)
    time = seconds - ago
    if motion == "round":
        angle = 2 * math.pi * (phase + time / 5)
        orbit = SIDE / 2 - radius * 0.75
        return SIDE / 2 + orbit * math.cos(angle), SIDE / 2 + orbit * math.sin(angle), 1.0
    if motion == "zigzag":
        x = low + (high - low) * _triangle_wave(phase + time / 11)
        return x, low + (high - low) * _triangle_wave(across + time / 3.1), 1.0
    fixed_x = radius + phase * (SIDE - 2 * radius)
    if motion == "blink":
        return fixed_x, fixed, float((phase + across + time / 2) % 1 < 0.5)
    return fixed_x, fixed, 0.75 + 0.35 * math.sin(2 * math.pi * (phase + time / 4.3))


def _triangle_wave(x: float) -> float:
    """Rises from 0 to 1 and falls back linearly, with period 1."""
    return 1 - abs(2 * (x % 1) - 1)


def _sprite(
    shape: str, texture: str, bright: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """The fraction of each pixel that is covered [2r+1, 2r+1, 1], and the pixels' colours
    [2r+1, 2r+1, 3]."""
    samples = 3  # per pixel in each direction, for smooth edges
    steps = (np.arange(samples * (2 * radius + 1)) + 0.5) / samples - radius - 0.5
    y, x = np.meshgrid(steps, steps, indexing="ij")
    tiles = (2 * radius + 1, samples, 2 * radius + 1, samples, -1)
    inside = SHAPES[shape](x / radius, y / radius)
    coverage = inside.reshape(tiles).mean((1, 3), dtype=np.float32)
    dark = np.array(DARK, np.float32)
    colours = np.where(TEXTURES[texture](x, y)[..., None], dark, bright)
    return coverage, colours.reshape(tiles).mean((1, 3))


def _blend(
    frame: np.ndarray, coverage: np.ndarray, colours: np.ndarray, *, left: int, top: int
) -> None:
    """Blends `colours` [h, w, 3] or [3] into `frame` at (left, top), weighted by `coverage`
    [h, w, 1]; clips at the edges of the frame."""
    height, width = coverage.shape[:2]
    rows = slice(max(top, 0), min(top + height, SIDE))
    columns = slice(max(left, 0), min(left + width, SIDE))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    colours = colours[part] if colours.ndim == 3 else colours
    frame[rows, columns] += coverage[part] * (colours - frame[rows, columns])


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane onto half of the upper point of the star; its edge is then a straight line.
    fold = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fold / 2) % fold - fold / 2)
    distance = np.hypot(x, y)
    along, aside = distance * np.cos(angle), distance * np.sin(angle)
    inner_along, inner_aside = 0.45 * math.cos(fold / 2), 0.45 * math.sin(fold / 2)
    return (inner_along - 1) * aside - inner_aside * (along - 1) >= 0


# Whether points, in units of the radius, are inside the shape.
SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "triangle": lambda x, y: (y <= 0.8) & (abs(x) <= 0.55 * (y + 1)),
    "star": _star,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1),
}

# Whether points, in pixels, are dark: a texture is equally fine on large and small shapes.
TEXTURES = {
    "plain": lambda x, y: np.zeros(x.shape, bool),
    "striped": lambda x, y: y // 4 % 2 == 0,
    "dotted": lambda x, y: np.hypot(x % 8 - 4, y % 8 - 4) < 2.6,
}

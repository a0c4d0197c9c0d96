"""Pictures of one moving shape; `data/shapes.py` says what there is and tells it in words.

Lengths are pixels, x to the right and y down.
"""

import math
from collections.abc import Iterator

import numpy as np

SIDE = 96
RATE = 4  # frames a second
SECONDS = (8, 12)
RADII = {"small": 15, "large": 29}
DARK = (16, 16, 20)  # the other colour of a texture
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
STAYING = ("blink", "pulse")  # all other motions leave a trail
TRAIL = ((2.0, 0.12), (1.5, 0.22), (1.0, 0.34), (0.5, 0.5))  # (seconds ago, opacity)


def draw(
    colour: str,
    shape: str,
    motion: str,
    size: str,
    texture: str,
    backdrop: str,
    seed: tuple[int, ...],
) -> Iterator[np.ndarray]:
    """Yields a clip of 8 to 12 s, uint8 [SIDE, SIDE, 3] each; the seed decides the rest:
    the light on the backdrop, tone, where the shape begins and how fast it moves."""
    rng = np.random.default_rng(seed)
    background = _background(backdrop, rng)
    bright = np.clip(np.float32(COLOURS[colour]) + rng.integers(-12, 13, 3), 0, 255)
    bright = bright.astype(np.float32)
    radius = RADII[size]
    count = int(rng.integers(SECONDS[0] * RATE, SECONDS[1] * RATE + 1))
    phase, across, pace = rng.uniform((0, 0, 0.85), (1, 1, 1.15))
    marks = ((0.0, 1.0),) if motion in STAYING else (*TRAIL, (0.0, 1.0))
    sprites = {}
    for i in range(count):
        seconds = i / RATE
        picture = background.copy()
        for ago, opacity in marks:
            x, y, scale = _place(motion, seconds * pace, ago * pace, radius, phase, across)
            reach = round(radius * scale)
            if not reach:
                continue
            if reach not in sprites:
                sprites[reach] = _sprite(shape, texture, bright, reach)
            cover, paint = sprites[reach]
            paint = paint if opacity == 1 else bright
            _lay(picture, cover * opacity, paint, round(x) - reach, round(y) - reach)
        yield (picture + 0.5).astype(np.uint8)


def _background(backdrop: str, rng: np.random.Generator) -> np.ndarray:
    """A slope of light over the backdrop's tone, with grain, float32 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    slope = 12 * (math.cos(angle) * x + math.sin(angle) * y)
    grain = rng.normal(0, 2.5, (SIDE, SIDE))
    tone = np.add(BACKDROPS[backdrop], rng.uniform(-10, 10, 3))
    return np.clip(tone + (slope + grain)[..., None], 0, 255).astype(np.float32)


def _place(
    motion: str, seconds: float, ago: float, radius: int, phase: float, across: float
) -> tuple[float, float, float]:
    """Centre x, y and scale; scale 0 is out of sight. `phase` and `across` are in [0, 1)."""
    low, high = radius * 0.5, SIDE - radius * 0.5
    beside = radius + across * (SIDE - 2 * radius)
    if motion in ("right", "up"):
        # The trail goes on beyond the picture's edge where the shape has just come in.
        way = low + (high - low) * ((phase + seconds / 6) % 1 - ago / 6)
        return (way, beside, 1.0) if motion == "right" else (beside, SIDE - way, 1.0)
    then = seconds - ago
    if motion == "round":
        angle = 2 * math.pi * (phase + then / 5)
        reach = SIDE / 2 - radius * 0.75
        return SIDE / 2 + reach * math.cos(angle), SIDE / 2 + reach * math.sin(angle), 1.0
    if motion == "zigzag":
        x = low + (high - low) * _to_and_fro(phase + then / 11)
        return x, low + (high - low) * _to_and_fro(across + then / 3.1), 1.0
    beside_x = radius + phase * (SIDE - 2 * radius)
    if motion == "blink":
        return beside_x, beside, float((phase + across + then / 2) % 1 < 0.5)
    return beside_x, beside, 0.75 + 0.35 * math.sin(2 * math.pi * (phase + then / 4.3))


def _to_and_fro(turns: float) -> float:
    """Goes evenly from 0 to 1 and back, once a turn."""
    return 1 - abs(2 * (turns % 1) - 1)


def _sprite(
    shape: str, texture: str, bright: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel is covered [2r+1, 2r+1, 1] and its colour [2r+1, 2r+1, 3]."""
    fine = 3  # points a pixel, for smooth edges
    steps = (np.arange(fine * (2 * radius + 1)) + 0.5) / fine - radius - 0.5
    y, x = np.meshgrid(steps, steps, indexing="ij")
    tiles = (2 * radius + 1, fine, 2 * radius + 1, fine, -1)
    inside = SHAPES[shape](x / radius, y / radius)
    cover = inside.reshape(tiles).mean((1, 3), dtype=np.float32)
    paint = np.where(TEXTURES[texture](x, y)[..., None], np.float32(DARK), bright)
    return cover, paint.reshape(tiles).mean((1, 3))


def _lay(picture: np.ndarray, cover: np.ndarray, paint: np.ndarray, left: int, top: int) -> None:
    """Mixes `paint` into the part of `picture` that `cover` [h, w, 1] at left, top falls on."""
    height, width = cover.shape[:2]
    rows = slice(max(top, 0), min(top + height, SIDE))
    columns = slice(max(left, 0), min(left + width, SIDE))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    cover = cover[part]
    paint = paint[part] if paint.ndim == 3 else paint
    picture[rows, columns] += cover * (paint - picture[rows, columns])


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane onto half of the upward point, whose edge is then one straight line.
    fold = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fold / 2) % fold - fold / 2)
    distance = np.hypot(x, y)
    along, aside = distance * np.cos(angle), distance * np.sin(angle)
    inner_along, inner_aside = 0.45 * math.cos(fold / 2), 0.45 * math.sin(fold / 2)
    return (inner_along - 1) * aside - inner_aside * (along - 1) >= 0


# Inside or not, at points in units of the radius.
SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "triangle": lambda x, y: (y <= 0.8) & (abs(x) <= 0.55 * (y + 1)),
    "star": _star,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1),
}

# Dark or not, at points in pixels: a texture is as fine on a large shape as on a small one.
TEXTURES = {
    "plain": lambda x, y: np.zeros(x.shape, bool),
    "striped": lambda x, y: y // 4 % 2 == 0,
    "dotted": lambda x, y: np.hypot(x % 8 - 4, y % 8 - 4) < 2.6,
}

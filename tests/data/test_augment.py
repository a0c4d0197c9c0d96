"""Augmentation: every operation against a computation by hand; the sampling distributions."""

import collections

import numpy as np
import pytest
from PIL import Image

from configs.base import get_config
from data.batches.augment import (
    FILL,
    OPERATIONS,
    Augment,
    open_augment,
    parse,
    sample_crop,
    sample_operations,
)
from data.errors import UsageError

TEXT = "rand-m7-n4-mstd0.5-inc1"
BY_NAME = {operation.name: operation for operation in OPERATIONS}


def generator(i: int) -> np.random.Generator:
    return np.random.default_rng(i)


def apply(name: str, magnitude: float, image: np.ndarray, sign: int = 1) -> np.ndarray:
    operation = BY_NAME[name]
    argument = operation.argument(magnitude / 10, sign)
    return np.asarray(operation.apply(Image.fromarray(image), argument)).astype(int)


def bands(values: list[int], height: int = 34) -> np.ndarray:
    """A grey image of vertical bands, each ten pixels wide."""
    row = np.repeat(np.array(values, np.uint8), 10)
    return np.broadcast_to(row[None, :, None], (height, len(row), 3)).copy()


def dot(x: int, y: int, size: int = 41) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    image[y, x] = 255
    return image


def centre(image: np.ndarray) -> tuple[float, float]:
    """The centre (x, y) of the bright pixels of the first channel, without the fill colour."""
    bright = np.where((image == FILL).all(-1), 0, image[..., 0])
    y, x = np.indices(bright.shape)
    return (x * bright).sum() / bright.sum(), (y * bright).sum() / bright.sum()


def test_parse():
    assert parse(TEXT) == (7, 4, 0.5)
    assert parse("rand-m10-n2-mstd0-inc1") == (10, 2, 0)
    wrong = ["rand", "m7", TEXT + "-p0.3", TEXT[:-1] + "0", "rand-m7-n4-inc1", TEXT.upper()]
    wrong += [TEXT.replace(*pair) for pair in (("m7", "m11"), ("n4", "n0"), ("0.5", "11"))]
    for text in (*wrong, "", TEXT + "\n"):
        with pytest.raises(UsageError, match="not of the form rand-m7-n4-mstd0.5-inc1") as refused:
            parse(text)
        assert "\n" not in str(refused.value)


def test_fill_colour_is_the_mean_of_clip():
    assert FILL == tuple(round(255 * x) for x in (0.48145466, 0.4578275, 0.40821073))


def test_config_keys():
    assert open_augment(1, **get_config().augment) is None
    assert open_augment(1, TEXT, 1.0, False) == Augment(1, parse(TEXT))
    assert open_augment(1, "", 0.5, True) == Augment(1, None, 0.5, True)


@pytest.mark.parametrize("magnitude", [2.5, 5, 10])
@pytest.mark.parametrize(
    "name, expected",
    [
        ("AutoContrast", lambda x, m: (x - 40) * 255 // 160),  # 40 to 200 becomes 0 to 255
        ("Invert", lambda x, m: 255 - x),
        ("Equalize", lambda x, m: np.repeat([0, 85, 170, 255], 10)),  # even steps
        ("Posterize", lambda x, m: x & {2.5: 0b11100000, 5: 0b11000000, 10: 0}[m]),
        ("Solarize", lambda x, m: np.where(x < {2.5: 192, 5: 128, 10: 0}[m], x, 255 - x)),
        ("SolarizeAdd", lambda x, m: np.where(x < 128, x + {2.5: 27, 5: 55, 10: 110}[m], x)),
        ("Brightness", lambda x, m: np.minimum(x * (1 + 0.09 * m), 255)),
        ("Contrast", lambda x, m: np.clip(108 + (x - 108) * (1 + 0.09 * m), 0, 255)),
        ("Color", lambda x, m: x),  # grey has no colour
    ],
)
def test_operations_on_colours(name, expected, magnitude):
    image = bands([40, 60, 130, 200])  # the mean is 107.5, which Contrast rounds
    want = np.broadcast_to(expected(image[0, :, 0].astype(int), magnitude), (34, 40))
    got = apply(name, magnitude, image)
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 0] == got[..., 2]).all()
    np.testing.assert_allclose(got[..., 0], want, atol=1)


@pytest.mark.parametrize("magnitude, sign", [(5, 1), (5, -1), (10, -1), (8, 1)])
def test_operations_with_a_strength(magnitude, sign):
    factor = max(0.1, 1 + sign * 0.09 * magnitude)
    red = np.full((4, 4, 3), (100, 10, 20), np.uint8)
    grey = (299 * 100 + 587 * 10 + 114 * 20) / 1000
    np.testing.assert_allclose(
        apply("Color", magnitude, red, sign)[0, 0],
        np.clip(grey + factor * (red[0, 0] - grey), 0, 255),
        atol=1.5,
    )
    np.testing.assert_allclose(
        apply("Brightness", magnitude, red, sign)[0, 0], factor * red[0, 0], atol=1
    )
    # Sharpness 0 is a weighted mean of nine pixels; the middle one counts five times.
    sharp = apply("Sharpness", magnitude, 100 + dot(5, 5, 11) // 255 * 26, sign)[..., 0]
    np.testing.assert_allclose(sharp[5, 5], 110 + factor * 16, atol=1)
    np.testing.assert_allclose(sharp[5, 6], 102 - factor * 2, atol=1)
    assert sharp[2, 2] == 100


@pytest.mark.parametrize("magnitude, sign", [(4, 1), (4, -1), (10, 1), (9, -1)])
def test_geometric_operations(magnitude, sign):
    share = sign * magnitude / 10
    turn = np.radians(30 * share)  # counterclockwise as displayed
    moved = centre(apply("Rotate", magnitude, dot(30, 20), sign))
    np.testing.assert_allclose(moved, (20 + 10 * np.cos(turn), 20 - 10 * np.sin(turn)), atol=0.2)
    for x, y in ((20, 8), (20, 30)):
        sheared = centre(apply("ShearX", magnitude, dot(x, y), sign))
        np.testing.assert_allclose(sheared, (x - 0.3 * share * (y + 0.5), y), atol=0.2)
        sheared = centre(apply("ShearY", magnitude, dot(y, x), sign))
        np.testing.assert_allclose(sheared, (y, x - 0.3 * share * (y + 0.5)), atol=0.2)
    to = 20 - 0.45 * share * 41
    moved = centre(apply("TranslateX", magnitude, dot(20, 11), sign))
    np.testing.assert_allclose(moved, (to, 11), atol=0.2)
    moved = centre(apply("TranslateY", magnitude, dot(11, 20), sign))
    np.testing.assert_allclose(moved, (11, to), atol=0.2)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        shown = apply(name, magnitude, np.full((41, 41, 3), 9, np.uint8), sign)
        outside = (shown == FILL).all(-1)
        assert outside.any() and not outside[20, 20]


@pytest.mark.parametrize("magnitude, sign", [(0, 1), (0.3, 1), (7, -1), (10, 1)])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_shear_and_translate_match_pillow(name, magnitude, sign):
    image = generator(8).integers(0, 256, (64, 64, 3), np.uint8)
    image[:, 20:40] = 77  # constant areas stay exactly constant
    x = BY_NAME[name].argument(magnitude / 10, sign)
    matrix = {
        "ShearX": (1, x, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, x, 1, 0),
        "TranslateX": (1, 0, 64 * x, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, 64 * x),
    }[name]
    pillow = Image.fromarray(image).transform(
        (64, 64), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )
    difference = np.abs(apply(name, magnitude, image, sign) - np.asarray(pillow).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_sampling_distributions():
    n, tries = 4, 6000
    drawn = [sample_operations(parse(TEXT), generator(i)) for i in range(tries)]
    flat = [step for steps in drawn for step in steps]
    counts = collections.Counter(operation.name for operation, _ in flat)
    even = len(flat) / len(OPERATIONS)
    assert len(counts) == len(OPERATIONS) == 15
    assert sum((count - even) ** 2 / even for count in counts.values()) < 36.1  # p = 0.001
    assert abs(len(flat) / tries - n / 2) < 4 * (n / 4 / tries) ** 0.5
    lengths = collections.Counter(map(len, drawn))
    for k, ways in enumerate((1, 4, 6, 4, 1)):
        assert abs(lengths[k] / tries - ways / 16) < 0.025
    # With replacement: of two operations, one in 15 is the same twice.
    twos = [steps for steps in drawn if len(steps) == 2]
    assert abs(np.mean([a is b for (a, _), (b, _) in twos]) - 1 / 15) < 0.025

    moves = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
    levels = np.array([10 * x / moves[o.name] for o, x in flat if o.name in moves])
    assert abs(np.mean(levels > 0) - 0.5) < 0.03
    assert abs(np.abs(levels).mean() - 7) < 0.04 and abs(np.abs(levels).std() - 0.5) < 0.03
    # Each operation has a magnitude of its own; they are not shared within a clip.
    pairs = [[abs(10 * x / moves[o.name]) for o, x in s if o.name in moves] for s in twos]
    a, b = np.array([pair for pair in pairs if len(pair) == 2]).T
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.25
    at_top = [sample_operations(parse(TEXT.replace("m7", "m10")), generator(i)) for i in range(300)]
    turns = [abs(x) for steps in at_top for o, x in steps if o.name == "Rotate"]
    assert max(turns) == 30 and 0.3 < np.mean(np.array(turns) == 30) < 0.7


def test_crops_fit_and_have_the_requested_area():
    boxes = np.array([sample_crop(100, 0.3, generator(i)) for i in range(3000)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() == 0 and boxes.max() == 100 and width.min() < 55 and height.min() < 55
    share = width * height / 1e4
    assert share.min() > 0.29 and share.max() <= 1
    assert (np.abs(np.log(width / height)) <= np.log(4 / 3) + 0.02).all()
    assert abs(np.mean(share[share < 0.75] < 0.525) - 0.5) < 0.04  # uniform where all ratios fit
    assert abs(np.mean(width < height) - np.mean(width > height)) < 0.06


def test_crop_and_flip():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None] * 6, (2, 40, 40, 3))
    sides = np.zeros((2, 40, 40, 3), np.uint8)
    sides[:, :, 20:] = 255
    flipped = [Augment(7, flip=True)(sides, i)[0, 0, 0, 0] == 255 for i in range(400)]
    assert 160 < sum(flipped) < 240
    for i in range(20):
        seen = Augment(7, crop=0.3)(ramp, i)[0, 0, :, 0].astype(int)
        key = np.array([7, i], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        left, _, right, _ = sample_crop(40, 0.3, rng)
        assert abs(seen[0] - 6 * left) <= 6 and abs(seen[-1] - 6 * (right - 1)) <= 6


NOISE = generator(3).integers(0, 256, (6, 24, 24, 3), np.uint8)
ALL = Augment(42, parse("rand-m7-n9-mstd0.5-inc1"), 0.4, True)


def test_frames_of_a_clip_are_augmented_alike_and_clips_differently():
    before = NOISE.copy()
    for position in range(8):
        frames = ALL(NOISE[:1].repeat(4, 0), position)
        assert (frames == frames[0]).all()
        assert (ALL(NOISE, position)[2] == ALL(NOISE[2:3], position)[0]).all()
    seen = {ALL(NOISE, position).tobytes() for position in range(30)}
    assert len(seen) == 30
    assert (ALL(NOISE, 5) == ALL(before, 5)).all() and (NOISE == before).all()
    assert (Augment(43, ALL.rand, ALL.crop, ALL.flip)(NOISE, 5) != ALL(NOISE, 5)).any()
    assert ALL(NOISE, 5).shape == NOISE.shape and ALL(NOISE, 5).dtype == np.uint8

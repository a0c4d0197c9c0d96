"""Frames that are rotated, of odd size or transparent; single images; several streams."""

import functools

import av
import numpy as np
import pytest
from PIL import Image

from data.video.decode import read_frames, read_images
from data.video.render import render_whole, resize_and_crop
from tests.helpers.clips import cover, encode, numbered, numbers, quarters, write_video


def same_quarters(frames: np.ndarray, image: np.ndarray) -> bool:
    """Whether the middle of each quarter has the same colour in the first frame and in `image`."""
    spots = np.ix_([0], [8, 24], [8, 24])
    expected = resize_and_crop(np.ascontiguousarray(image), 32)[None][spots]
    return np.abs(frames[spots].astype(int) - expected).max() < 40


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_mirroring_of_the_file_are_applied(tmp_path, degrees, mirror):
    image = quarters(64, 48)

    def prepare(container, stream):
        stream.set_display_rotation(degrees, hflip=mirror)

    path = write_video(tmp_path / "a.mp4", [image] * 2, prepare=prepare)
    upright = np.rot90(image, degrees // 90)
    upright = upright[:, ::-1] if mirror else upright
    assert same_quarters(read_frames(str(path), 32, 1), upright)


def test_display_matrix_of_phones(tmp_path):
    def prepare(container, stream):  # what phones write: rotate by 90 degrees clockwise
        stream.set_display_matrix([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30])

    path = write_video(tmp_path / "a.mp4", [quarters(64, 48)] * 2, prepare=prepare)
    assert same_quarters(read_frames(str(path), 32, 1), np.rot90(quarters(64, 48), -1))
    (whole,) = read_images(str(path), functools.partial(render_whole, side=32), 1)
    assert whole.shape == (32, 24, 3)  # not cropped
    spots = whole[np.ix_([8, 24], [6, 18])].astype(int)
    assert np.abs(spots - np.rot90(quarters(2, 2), -1)).max() < 40


@pytest.mark.parametrize("width, height", [(97, 51), (51, 97), (33, 33), (5, 7)])
def test_odd_sizes(tmp_path, width, height):
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : (width + 1) // 2] = 200
    path = write_video(tmp_path / "a.mkv", [image] * 2, "ffv1", "bgr0")
    assert np.array_equal(read_frames(str(path), 32, 1)[0], resize_and_crop(image, 32))


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "qtrle", "argb"), ("b.mov", "png", "rgba")],
)
def test_transparency_is_blended_over_black(tmp_path, name, codec, pix_fmt):
    image = np.zeros((48, 64, 4), np.uint8)
    image[...] = (240, 120, 40, 0)
    image[:24, :, 3] = 255
    options = {"auto-alt-ref": "0"} if codec == "libvpx-vp9" else {}
    path = write_video(tmp_path / name, [image] * 2, codec, pix_fmt, options=options)
    frame = read_frames(str(path), 32, 1)[0].astype(int)
    assert np.abs(frame[:12] - (240, 120, 40)).max() < 16
    assert frame[20:].max() < 4


def test_half_transparent_frame_is_half_as_bright(tmp_path):
    image = np.full((48, 64, 4), 128, np.uint8)
    path = write_video(tmp_path / "a.mov", [image] * 2, "png", "rgba")
    assert np.abs(read_frames(str(path), 32, 1).astype(int) - 64).max() <= 1


def test_colours_and_colour_range(tmp_path):
    image = quarters(64, 64)
    path = write_video(tmp_path / "a.mp4", [image])
    frame = read_frames(str(path), 64, 1)[0]
    assert np.abs(frame[8:24, 8:24].astype(int) - (255, 0, 0)).max() < 8
    assert frame[40:56, 40:56].min() > 250


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.mp4"])
def test_single_frame(tmp_path, name):
    image = quarters(48, 48)
    path = tmp_path / name
    if name.endswith("mp4"):
        write_video(path, [image])
    else:
        Image.fromarray(image).save(path)
    frames = read_frames(str(path), 32, 12)
    assert len(frames) == 1 and same_quarters(frames, image)


def test_png_with_a_transparent_colour_and_the_name_of_a_video(tmp_path):
    path, image = tmp_path / "a.mp4", quarters(48, 48)
    palette = Image.fromarray(image).quantize(8)
    palette.save(path, format="png", transparency=palette.getpixel((40, 40)))
    image[24:, 24:] = 0
    assert same_quarters(read_frames(str(path), 32, 12), image)


def test_default_stream_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(3)]
        for i, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = int(i == 1)
        for i, stream in enumerate(streams):
            encode(container, stream, [np.full((48, 64, 3), 80 * i, np.uint8)] * 10)
    assert np.abs(read_frames(str(path), 32, 1).astype(int) - 80).max() < 4


def test_cover_art_is_skipped(tmp_path):
    def attach(container, stream):
        container.add_attachment("cover.png", "image/png", cover())

    path = write_video(tmp_path / "a.mkv", numbered(25), prepare=attach)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 10, 20]

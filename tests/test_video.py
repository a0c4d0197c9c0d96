"""Frame choice and pictures against the recorded numbers; decoding of plain and odd files."""

import io
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    encode,
    numbered,
    numbers,
    overstate_frames,
    quarters,
    spoil_packets,
    write_sound,
    write_video,
)
from PIL import Image

from data import video
from data.check import check_clips, require_sound
from data.records import Clip
from data.video import frame_positions, probe, read_frames, resize_and_crop
from hvp_jax.errors import BadData

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", json.loads((GOLDEN / "frame_positions.json").read_text()))
def test_positions_are_the_recorded_ones(case):
    found = frame_positions(
        case["frames"], case["fps"], case["max_frames"], case["start"], case["end"]
    )
    assert found == case["positions"]


def test_positions_exist_and_are_never_none():
    for frames in (1, 2, 7, 100):
        for rate in (0.2, 1, 12.5, 240):
            for start, end in ((None, None), (0, 0.01), (3, 4), (99, 120), (None, 0), (3, 1)):
                found = frame_positions(frames, rate, 5, start, end)
                assert 1 <= len(found) <= 5
                assert 0 <= min(found) and max(found) < frames


@pytest.mark.parametrize("case", range(3))
def test_pictures_are_the_recorded_ones(case):
    with np.load(GOLDEN / "preprocess.npz") as golden:
        frame, crop = golden[f"{case}/frame"], golden[f"{case}/crop_uint8"]
    found = resize_and_crop(frame, crop.shape[0])
    assert found.dtype == np.uint8
    assert np.array_equal(found, crop)


PLAIN = {
    "mp4": {},  # pictures are stored in another order than shown
    "mkv": {},
    "webm": {"codec": "libvpx"},
    "ts": {},
    "h264": {"format": "h264"},  # neither count nor times
    "mov": {"codec": "mpeg4", "options": {"bf": "2", "qmin": "1", "qmax": "2"}},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("name", PLAIN)
def test_frames_of_a_steady_video_are_at_the_positions(tmp_path, name):
    path = write_video(tmp_path / f"a.{name}", numbered(52), rate=25, **PLAIN[name])
    frames = read_frames(str(path), 32, 12)
    assert frames.shape == (3, 32, 32, 3) and frames.dtype == np.uint8
    tolerance = 1 if name == "gif" else 0  # its palette is coarse
    assert np.abs(np.array(numbers(frames)) - (0, 25, 50)).max() <= tolerance


def test_frames_are_in_order_where_stamps_are_those_of_packets(tmp_path):
    path = write_video(tmp_path / "a.avi", numbered(52), rate=10)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 10, 20, 30, 40, 50]
    assert numbers(read_frames(str(path), 32, 2, 0.3, 1.3)) == [3, 13]
    assert numbers(read_frames(str(path), 32, 1, 0.1, 0.2)) == [1]


def test_at_most_so_many_frames_within_the_stretch(tmp_path):
    path = str(write_video(tmp_path / "a.mkv", numbered(60), rate=Fraction(30000, 1001)))
    assert numbers(read_frames(path, 32, 1)) == [0]
    path = str(write_video(tmp_path / "b.mkv", numbered(60), rate=5))
    assert numbers(read_frames(path, 32, 4)) == [0, 15, 35, 55]
    assert numbers(read_frames(path, 32, 12, 2, 5)) == [10, 15, 20, 25]
    assert numbers(read_frames(path, 32, 12, 10, 90)) == [50, 55]


def test_only_chosen_frames_are_resized(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", numbered(50))
    calls = []
    monkeypatch.setattr(
        video, "resize_and_crop", lambda *args: calls.append(0) or resize_and_crop(*args)
    )
    assert len(read_frames(str(path), 32, 3)) == 3
    assert len(calls) == 3


def test_the_header_may_lie_about_the_number_of_frames(tmp_path):
    path = write_video(tmp_path / "a.avi", numbered(20), "mjpeg", "yuvj420p", rate=5)
    overstate_frames(path, 444)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 444
    assert numbers(read_frames(str(path), 32, 12)) == [0, 5, 10, 15]


@pytest.mark.parametrize("offset", [0, 7000])
def test_frames_of_a_varying_rate_are_chosen_by_time(tmp_path, offset):
    # Ten pictures in the first second, then one every two seconds: the rate is 19 / 20.9.
    moments = [100 * i for i in range(10)] + [2900 + 2000 * i for i in range(10)]
    path = write_video(tmp_path / "a.mkv", numbered(20), milliseconds=[offset + m for m in moments])
    seconds = np.arange(20) * 20.9 / 19
    shown = [max(i for i in range(20) if moments[i] <= 1000 * s + 1e-6) for s in seconds]
    assert len(set(shown)) < 20
    assert numbers(read_frames(str(path), 32, 20)) == shown


def test_a_jitter_of_the_times_is_no_varying_rate(tmp_path):
    moments = [40 * i + (12 if i in (25, 50) else 0) for i in range(52)]
    path = write_video(tmp_path / "a.mkv", numbered(52), milliseconds=moments)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 25, 50]


def stands_as(frames: np.ndarray, picture: np.ndarray) -> bool:
    """Whether the middle of each quarter has the colour that it has in `picture`."""
    spots = np.ix_([0], [8, 24], [8, 24])
    expected = resize_and_crop(np.ascontiguousarray(picture), 32)[None][spots]
    return np.abs(frames[spots].astype(int) - expected).max() < 40


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_pictures_are_turned_and_mirrored_as_the_file_asks(tmp_path, degrees, mirror):
    picture = quarters(64, 48)

    def prepare(container, stream):
        stream.set_display_rotation(degrees, hflip=mirror)

    path = write_video(tmp_path / "a.mp4", [picture] * 2, prepare=prepare)
    upright = np.rot90(picture, degrees // 90)
    upright = upright[:, ::-1] if mirror else upright
    assert stands_as(read_frames(str(path), 32, 1), upright)


def test_a_phone_held_upright(tmp_path):
    def prepare(container, stream):  # what phones write: to be shown a quarter clockwise
        stream.set_display_matrix([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30])

    path = write_video(tmp_path / "a.mp4", [quarters(64, 48)] * 2, prepare=prepare)
    assert stands_as(read_frames(str(path), 32, 1), np.rot90(quarters(64, 48), -1))


@pytest.mark.parametrize("width, height", [(97, 51), (51, 97), (33, 33), (5, 7)])
def test_odd_sizes(tmp_path, width, height):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : (width + 1) // 2] = 200
    path = write_video(tmp_path / "a.mkv", [picture] * 2, "ffv1", "bgr0")
    assert np.array_equal(read_frames(str(path), 32, 1)[0], resize_and_crop(picture, 32))


@pytest.mark.parametrize(
    "name, codec, pix_fmt",
    [("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "qtrle", "argb"), ("b.mov", "png", "rgba")],
)
def test_transparency_is_laid_over_black(tmp_path, name, codec, pix_fmt):
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[...] = (240, 120, 40, 0)
    picture[:24, :, 3] = 255
    options = {"auto-alt-ref": "0"} if codec == "libvpx-vp9" else {}
    path = write_video(tmp_path / name, [picture] * 2, codec, pix_fmt, options=options)
    frame = read_frames(str(path), 32, 1)[0].astype(int)
    assert np.abs(frame[:12] - (240, 120, 40)).max() < 16
    assert frame[20:].max() < 4


def test_half_transparent_is_half_as_bright(tmp_path):
    picture = np.full((48, 64, 4), 128, np.uint8)
    path = write_video(tmp_path / "a.mov", [picture] * 2, "png", "rgba")
    assert np.abs(read_frames(str(path), 32, 1).astype(int) - 64).max() <= 1


def test_colours_and_their_range(tmp_path):
    picture = quarters(64, 64)
    path = write_video(tmp_path / "a.mp4", [picture])
    frame = read_frames(str(path), 64, 1)[0]
    assert np.abs(frame[8:24, 8:24].astype(int) - (255, 0, 0)).max() < 8
    assert frame[40:56, 40:56].min() > 250


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.mp4"])
def test_a_single_picture(tmp_path, name):
    picture = quarters(48, 48)
    path = tmp_path / name
    if name.endswith("mp4"):
        write_video(path, [picture])
    else:
        Image.fromarray(picture).save(path)
    frames = read_frames(str(path), 32, 12)
    assert len(frames) == 1 and stands_as(frames, picture)


def test_a_picture_named_as_a_video_with_a_transparent_colour(tmp_path):
    path, picture = tmp_path / "a.mp4", quarters(48, 48)
    palette = Image.fromarray(picture).quantize(8)
    palette.save(path, format="png", transparency=palette.getpixel((40, 40)))
    picture[24:, 24:] = 0
    assert stands_as(read_frames(str(path), 32, 12), picture)


def test_the_default_of_several_streams(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(3)]
        for i, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.disposition = int(i == 1)
        for i, stream in enumerate(streams):
            encode(container, stream, [np.full((48, 64, 3), 80 * i, np.uint8)] * 10)
    assert np.abs(read_frames(str(path), 32, 1).astype(int) - 80).max() < 4


def cover() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((300, 300, 3), 255, np.uint8)).save(file, "png")
    return file.getvalue()


def test_a_cover_picture_is_no_video(tmp_path):
    def attach(container, stream):
        container.add_attachment("cover.png", "image/png", cover())

    path = write_video(tmp_path / "a.mkv", numbered(25), prepare=attach)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 10, 20]


def test_lost_frames_are_the_last_good_one(tmp_path):
    path = write_video(tmp_path / "a.mov", numbered(40), "png", "rgb24", rate=5)
    spoil_packets(path, 9, 16)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 5, 8, 8, 20, 25, 30, 35]
    spoil_packets(path, 0, 2)
    spoil_packets(path, 30, 39)
    assert numbers(read_frames(str(path), 32, 12)) == [3, 5, 8, 8, 20, 25, 29, 29]


def test_a_file_that_is_cut_off(tmp_path):
    noise = np.random.default_rng(0).integers(0, 4, (40, 48, 64, 3), dtype=np.uint8)
    path = write_video(
        tmp_path / "a.mkv", np.stack(numbered(40)) + noise, "mjpeg", "yuvj420p", rate=5
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    found = numbers(read_frames(str(path), 32, 12))
    assert len(found) in (4, 5) and found == [0, 5, 10, 15, 20][: len(found)]


def test_start_beyond_the_end_is_said(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", numbered(20)))
    for use in (lambda: read_frames(path, 32, 12, 2.0, 9.0), lambda: probe(path, 2.0)):
        with pytest.raises(BadData, match=r"a\.mp4: start 2 s lies beyond .* \(2\.00 s\)"):
            use()
    assert numbers(read_frames(path, 32, 12, 1.95, 9.0)) == [19]
    probe(path, 1.95)


def broken_files(folder: Path) -> dict[str, str]:
    """Path -> what is to be said of it."""
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("a cat plays the piano\n" * 50)
    whole = write_video(folder / "whole.mp4", numbered(20)).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    spoilt = write_video(folder / "spoilt.mov", numbered(4), "png", "rgb24")
    spoil_packets(spoilt, 0, 3)
    write_sound(folder / "sound.mkv")
    write_sound(folder / "song.mkv", cover())
    return {
        str(folder / "empty.mp4"): "empty file",
        str(folder / "text.mp4"): "Invalid data",
        str(folder / "cut.mp4"): "Invalid data",
        str(spoilt): "no frame decodes",
        str(folder / "sound.mkv"): "no video stream",
        str(folder / "song.mkv"): "no video stream",
        str(folder / "gone.mp4"): "No such file",
        str(folder): "Is a directory",
    }


def test_what_is_no_video_is_named_in_one_line(tmp_path):
    for path, reason in broken_files(tmp_path).items():
        for use in (probe, lambda path: read_frames(path, 32, 12)):
            with pytest.raises(BadData) as caught:
                use(path)
            message = str(caught.value)
            assert message.startswith(f"{path}: not a readable video ({reason}"), message
            assert "\n" not in message


def test_nothing_stays_open(tmp_path):
    paths = [*broken_files(tmp_path), str(tmp_path / "whole.mp4")]
    before = len(os.listdir("/proc/self/fd"))
    for path in paths * 3:
        try:
            read_frames(path, 32, 12)
            probe(path)
        except BadData:
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_bad_clips_are_found_and_told(tmp_path, capfd):
    faults = {path: why for path, why in broken_files(tmp_path).items() if why[0] != "I"}
    whole = str(tmp_path / "whole.mp4")
    good = Clip("good", whole, ("x",), "train", 0.0, 1.0)
    late = Clip("late", whole, ("x",), "train", 5.0, 6.0)
    bad = [Clip(f"id{i}", path, ("x",), "train") for i, path in enumerate(faults)]
    clips = [good, *bad, late, good]
    found = check_clips(clips, progress=False)
    assert [clip for clip, _ in found] == [*bad, late]
    reasons = dict((clip.clip_id, reason) for clip, reason in found)
    assert reasons["id0"] == "not a readable video (empty file)"
    assert "beyond the end" in reasons["late"]
    assert any(reason == "no such file" for reason in reasons.values())
    assert capfd.readouterr().err == ""
    with pytest.raises(BadData) as caught:
        require_sound(clips)
    message = str(caught.value)
    assert message.startswith(f"{len(bad) + 1} of {len(clips)} clips")
    assert "id0" in message and "id2" in message and "id3" not in message
    assert bad[0].path in message and "\n" not in message
    require_sound([good])
    assert capfd.readouterr().out == ""

"""Frame positions and image preprocessing against golden values; which frames are read."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from data.video import render
from data.video.decode import read_frames
from data.video.render import resize_and_crop
from data.video.timeline import frame_positions
from tests.helpers.clips import numbered, numbers, overstate_frames, write_video
from tests.helpers.command import GOLDEN


@pytest.mark.parametrize("case", json.loads((GOLDEN / "frame_positions.json").read_text()))
def test_frame_positions_match_golden(case):
    positions = frame_positions(
        case["frames"], case["fps"], case["max_frames"], start=case["start"], end=case["end"]
    )
    assert positions == case["positions"]


def test_frame_positions_are_within_the_video_and_never_empty():
    for num_frames in (1, 2, 7, 100):
        for fps in (0.2, 1, 12.5, 240):
            for start, end in ((None, None), (0, 0.01), (3, 4), (99, 120), (None, 0), (3, 1)):
                positions = frame_positions(num_frames, fps, 5, start=start, end=end)
                assert 1 <= len(positions) <= 5
                assert 0 <= min(positions) and max(positions) < num_frames


@pytest.mark.parametrize("case", range(3))
def test_resize_and_crop_matches_golden(case):
    with np.load(GOLDEN / "preprocess.npz") as golden:
        frame, crop = golden[f"{case}/frame"], golden[f"{case}/crop_uint8"]
    actual = resize_and_crop(frame, crop.shape[0])
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, crop)


PLAIN = {
    "mp4": {},  # frames are stored in another order than they are shown
    "mkv": {},
    "webm": {"codec": "libvpx"},
    "ts": {},
    "h264": {"format": "h264"},  # neither a frame count nor time stamps
    "mov": {"codec": "mpeg4", "options": {"bf": "2", "qmin": "1", "qmax": "2"}},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


@pytest.mark.parametrize("name", PLAIN)
def test_constant_frame_rate(tmp_path, name):
    path = write_video(tmp_path / f"a.{name}", numbered(52), rate=25, **PLAIN[name])
    frames = read_frames(str(path), 32, 12)
    assert frames.shape == (3, 32, 32, 3) and frames.dtype == np.uint8
    tolerance = 1 if name == "gif" else 0  # its palette is coarse
    assert np.abs(np.array(numbers(frames)) - (0, 25, 50)).max() <= tolerance


def test_order_of_frames_if_only_packets_have_time_stamps(tmp_path):
    path = write_video(tmp_path / "a.avi", numbered(52), rate=10)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 10, 20, 30, 40, 50]
    assert numbers(read_frames(str(path), 32, 2, start=0.3, end=1.3)) == [3, 13]
    assert numbers(read_frames(str(path), 32, 1, start=0.1, end=0.2)) == [1]


def test_at_most_max_frames_within_the_segment(tmp_path):
    path = str(write_video(tmp_path / "a.mkv", numbered(60), rate=Fraction(30000, 1001)))
    assert numbers(read_frames(path, 32, 1)) == [0]
    path = str(write_video(tmp_path / "b.mkv", numbered(60), rate=5))
    assert numbers(read_frames(path, 32, 4)) == [0, 15, 35, 55]
    assert numbers(read_frames(path, 32, 12, start=2, end=5)) == [10, 15, 20, 25]
    assert numbers(read_frames(path, 32, 12, start=10, end=90)) == [50, 55]


def test_only_sampled_frames_are_resized(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", numbered(50))
    calls = []
    monkeypatch.setattr(
        render, "resize_and_crop", lambda *args: calls.append(0) or resize_and_crop(*args)
    )
    assert len(read_frames(str(path), 32, 3)) == 3
    assert len(calls) == 3


def test_wrong_frame_count_in_the_header(tmp_path):
    path = write_video(tmp_path / "a.avi", numbered(20), "mjpeg", "yuvj420p", rate=5)
    overstate_frames(path, 444)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 444
    assert numbers(read_frames(str(path), 32, 12)) == [0, 5, 10, 15]


@pytest.mark.parametrize("offset", [0, 7000])
def test_variable_frame_rate_is_sampled_by_time(tmp_path, offset):
    # Ten frames in the first second, then one every two seconds: the mean rate is 19 / 20.9.
    times_ms = [100 * i for i in range(10)] + [2900 + 2000 * i for i in range(10)]
    path = write_video(
        tmp_path / "a.mkv", numbered(20), milliseconds=[offset + m for m in times_ms]
    )
    seconds = np.arange(20) * 20.9 / 19
    shown = [max(i for i in range(20) if times_ms[i] <= 1000 * s + 1e-6) for s in seconds]
    assert len(set(shown)) < 20
    assert numbers(read_frames(str(path), 32, 20)) == shown


def test_jitter_of_time_stamps_is_still_a_constant_rate(tmp_path):
    times_ms = [40 * i + (12 if i in (25, 50) else 0) for i in range(52)]
    path = write_video(tmp_path / "a.mkv", numbered(52), milliseconds=times_ms)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 25, 50]


def test_a_pyav_without_metadata_errors_opens_videos(tmp_path, monkeypatch):
    """PyAV 19 has no such argument; any other TypeError is a bug."""
    path = write_video(tmp_path / "a.mp4", numbered(3))
    expected = read_frames(str(path), 16, 3)

    def open_19(file, mode="r", **arguments):
        if "metadata_errors" in arguments:
            raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
        return av_open(file, mode, **arguments)

    av_open = av.open
    monkeypatch.setattr(av, "open", open_19)
    np.testing.assert_array_equal(read_frames(str(path), 16, 3), expected)

    def fail(*arguments, **options):
        raise TypeError("another")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(TypeError, match="another"):
        read_frames(str(path), 16, 3)

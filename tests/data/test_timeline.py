"""One clock for a video: that of a player. Late pictures, gaps, and a last frame that stays on."""

from fractions import Fraction

import av
import numpy as np
import pytest

from data.checks import doctor
from data.errors import DataError
from data.records import Annotations, Clip
from data.video.decode import read_frames, require_stretch, timeline_of
from data.video.inspection import FileJob, inspect_file
from tests.helpers.clips import numbered, numbers, write_video


def write_late(path, delay: float, frames=None, rate: int = 5, codec: str = "libx264") -> str:
    """A video whose picture starts `delay` seconds after its sound."""
    frames = numbered(50) if frames is None else frames
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("libopus" if str(path).endswith("webm") else "aac", rate=48000)
        for i in range(int(delay + len(frames) / rate) * 50):
            silence = np.zeros((1, 2 * 960), np.int16)
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 48000, 960 * i
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i + round(delay * rate), Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return str(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4", "a.mov"])
def test_a_picture_that_starts_after_the_sound_is_whole(tmp_path, name):
    path = write_late(tmp_path / name, 5.0, codec="libvpx" if name == "a.webm" else "libx264")
    timeline = timeline_of(path)
    assert timeline.offset == pytest.approx(5.0, abs=0.05)
    assert timeline.end == pytest.approx(15.0, abs=0.05)
    (segment,) = inspect_file(FileJob(path, ((None, None),), 12)).segments
    assert segment.fault == segment.damage == "" and segment.seconds == pytest.approx(10, abs=0.1)
    assert numbers(read_frames(path, 32, 3)) == [0, 20, 45]  # the whole clip is not delayed
    # 7 s on the player's clock is 2 s after the first picture.
    assert numbers(read_frames(path, 32, 12, start=7.1, end=8.3)) == [10, 15]
    require_stretch(path, 14.0, None)
    for start, end, message in ((15.2, None, "beyond the end"), (1.0, 3.0, "before the first")):
        with pytest.raises(DataError, match=message):
            read_frames(path, 32, 12, start=start, end=end)
        with pytest.raises(DataError, match=message):
            require_stretch(path, start, end)


def test_a_truncated_late_file_is_still_cut_short(tmp_path):
    noise = np.random.default_rng(0).integers(0, 60, (50, 48, 64, 3), np.uint8)
    path = write_late(tmp_path / "a.mkv", 2.0, np.stack(numbered(50)) + noise)
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
    (segment,) = inspect_file(FileJob(path, ((None, None),), 12)).segments
    assert "cut short" in segment.fault


def test_encoders_delay_of_the_sound_is_no_offset(tmp_path):
    path = write_late(tmp_path / "a.mp4", 0.0)
    assert timeline_of(path).offset == 0
    assert numbers(read_frames(path, 32, 12, start=2, end=4)) == [10, 15, 20]


def write_slides(path, milliseconds: list[int], last: int) -> str:
    """Slides at the given times, the last of which is shown for `last` milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for i, pixels in enumerate(numbered(len(milliseconds))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = milliseconds[i], Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        latest = max(packets, key=lambda packet: packet.pts)
        for packet in packets:
            packet.duration = last if packet is latest else packet.duration
            container.mux(packet)
    return str(path)


def test_the_last_frame_stays_on_as_long_as_the_file_says(tmp_path):
    path = write_slides(tmp_path / "a.mp4", [0, 10_000, 20_000], 100_000)
    assert timeline_of(path).end == pytest.approx(120.0)
    assert numbers(read_frames(path, 32, 12, start=60, end=80)) == [2]
    job = FileJob(path, ((60.0, 80.0), (None, None)), 12)
    segments = inspect_file(job).segments
    assert [segment.fault for segment in segments] == ["", ""]
    assert [segment.seconds for segment in segments] == pytest.approx([20.0, 120.0])
    with pytest.raises(DataError, match=r"beyond the end of the video \(120.00 s\)"):
        require_stretch(path, 121.0, None)


GAP = [100 * i for i in range(25)] + [3_600_000 + 100 * i for i in range(25)]


def test_frames_are_spread_over_what_there_is_to_see(tmp_path):
    path = str(write_video(tmp_path / "a.mkv", numbered(50), milliseconds=GAP))
    timeline = timeline_of(path)
    assert timeline.gap.start == pytest.approx(2.4)
    assert timeline.gap.seconds == pytest.approx(3597.6)
    assert timeline.end == pytest.approx(3602.5)
    assert numbers(read_frames(path, 32, 12)) == [0, 10, 20, 30, 40]
    # Times are still those of a player, before, in and after the gap.
    assert numbers(read_frames(path, 32, 12, start=1.0, end=2.0)) == [10, 20]
    assert numbers(read_frames(path, 32, 12, start=1000.0, end=2000.0)) == [24]
    assert numbers(read_frames(path, 32, 12, start=3600.5, end=3601.6)) == [30, 40]


def test_doctor_names_a_gap(tmp_path):
    path = str(write_video(tmp_path / "a.mkv", numbered(50), milliseconds=GAP))
    clip = Clip("a", path, ("a caption",), "train")
    inspected = doctor.inspect_clips([clip], 12, progress=False)
    result = doctor.report("folder", Annotations([clip], {}, []), inspected, 24, progress=False)
    assert result["ok"] and result["splits"]["train"]["gap"] == 1
    (warning,) = [w for w in result["warnings"] if w["kind"] == "gap"]
    assert "no new frame for 3597.6 s after 2.4 s" in warning["reason"]


@pytest.mark.parametrize(
    "milliseconds", [[10_000 * i for i in range(8)], [0, 200, 400, 9000, 9200], [0, 100_000]]
)
def test_slides_are_no_gap(tmp_path, milliseconds):
    path = write_slides(tmp_path / "a.mp4", milliseconds, 100)
    assert timeline_of(path).gap is None

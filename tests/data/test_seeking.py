"""Frames read from the access points before them are those of a full decode, to the bit."""

import av
import numpy as np
import pytest

from data.video import decode, seeking
from data.video.decode import read_frames, timeline_of
from data.video.inspection import DecodeRequest, FileJob, decode_checked, inspect_file
from tests.helpers.clips import spoil_packets, write_video

FRAMES = 150
X265 = "keyint=20:log-level=none"
VPX = {"g": "20", "deadline": "realtime", "cpu-used": "8"}
FILES = {  # name: codec, pixel format, options, whether seeking is trusted
    "h264.mp4": ("libx264", "yuv420p", {"g": "20", "bf": "2"}, True),
    "h264.mkv": ("libx264", "yuv420p", {"g": "20", "bf": "3"}, True),
    "h264.mov": ("libx264", "yuv444p", {"g": "12"}, True),
    "h264.ts": ("libx264", "yuv420p", {"g": "20"}, True),
    "h264.flv": ("libx264", "yuv420p", {"g": "20", "bf": "0"}, True),
    "open.mp4": ("libx264", "yuv420p", {"x264-params": "keyint=20:open-gop=1:bframes=3"}, False),
    "refresh.mp4": ("libx264", "yuv420p", {"x264-params": "keyint=20:intra-refresh=1"}, False),
    "hevc.mp4": (
        "libx265",
        "yuv420p",
        {"x265-params": f"{X265}:open-gop=1"},
        True,
    ),
    "hevc.mkv": ("libx265", "yuv420p", {"x265-params": X265}, True),
    "vp8.webm": ("libvpx", "yuv420p", VPX, True),
    "vp9.webm": (
        "libvpx-vp9",
        "yuv420p",
        {"g": "20", "deadline": "realtime", "cpu-used": "8"},
        True,
    ),
    "av1.mp4": ("libsvtav1", "yuv420p", {"g": "20", "preset": "12"}, True),
    "mjpeg.mov": ("mjpeg", "yuvj420p", {}, True),
    "prores.mov": ("prores_ks", "yuv422p10le", {}, True),
    "mpeg2.ts": ("mpeg2video", "yuv420p", {"g": "20", "bf": "2"}, True),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {"g": "20", "bf": "2"}, False),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "20", "bf": "2"}, False),
    "ffv1.mkv": ("ffv1", "bgr0", {"g": "20"}, False),
    "png.mov": ("png", "rgb24", {}, False),
    "gif.gif": ("gif", "rgb8", {}, False),
}


def moving(count: int) -> np.ndarray:
    """Frames [count, 48, 64, 3] in which everything changes: a wrong reference is seen."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (48, 64 + count, 3), np.uint8)
    return np.stack([picture[:, i : i + 64] for i in range(count)])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The path of each file, written when it is first asked for."""
    folder, written = tmp_path_factory.mktemp("videos"), {}

    def file(name: str) -> str:
        if name not in written:
            codec, pix_fmt, options, _ = FILES[name]
            if codec not in av.codecs_available:
                pytest.fail(f"this PyAV has no {codec}")
            kind = {"ts": "mpegts"}.get(name[-2:])
            written[name] = str(
                write_video(
                    folder / name, moving(FRAMES), codec, pix_fmt, options=options, format=kind
                )
            )
        return written[name]

    return file


def by_full_decode(monkeypatch, use):
    """What `use` returns if no file is trusted."""

    def refuse(*arguments):
        raise seeking.NotTrusted

    with monkeypatch.context() as patch:
        patch.setattr(seeking, "plan_runs", refuse)
        return use()


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_those_of_a_full_decode(files, name, monkeypatch):
    path, seeks = files(name), []
    count = seeking._seek
    monkeypatch.setattr(seeking, "_seek", lambda *a: seeks.append(a) or count(*a))
    for start, end in ((None, None), (9.1, 12.0), (7.0, 7.4), (13.9, 99.0), (5.05, 5.1)):
        use = lambda: read_frames(path, 32, 12, start=start, end=end)  # noqa: B023, E731
        assert np.array_equal(use(), by_full_decode(monkeypatch, use)), (start, end)
    assert bool(seeks) == FILES[name][3]


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mkv", "open.mp4", "mpeg4.avi", "mjpeg.mov"])
def test_stretches_are_checked_as_by_a_full_decode(files, name, monkeypatch):
    path, stretches = files(name), ((1.0, 2.0), (9.1, 12.0), (14.0, 20.0))
    use = lambda: inspect_file(FileJob(path, stretches, 12))  # noqa: E731
    assert use() == by_full_decode(monkeypatch, use)
    for start, end in stretches:
        decoded = decode_checked(DecodeRequest(path, start, end, 12, 32))
        assert np.array_equal(decoded, read_frames(path, 32, 12, start=start, end=end))


def test_a_stretch_is_decoded_from_the_access_point_before_it(files, monkeypatch):
    decoded = []
    run = decode.decode_run

    def count(container, stream, decoder, timeline, wanted):
        decoded.append((wanted.first, wanted.numbers))
        return run(container, stream, decoder, timeline, wanted)

    monkeypatch.setattr(decode, "decode_run", count)
    read_frames(files("h264.mp4"), 32, 12, start=12.4, end=13.4)
    assert decoded == [(120, [124, 134])]
    decoded.clear()
    read_frames(files("h264.mp4"), 32, 3)  # frames 0, 70 and 140 of 20 from key to key frame
    assert decoded == [(0, [0]), (60, [70]), (140, [140])]


def test_a_frame_is_decoded_from_an_access_point_that_is_shown_before_it(files):
    """Frames that follow a key frame and are shown before it may refer to earlier ones."""
    timeline, leading = timeline_of(files("hevc.mp4")), 0
    packets = timeline.packets
    for number in range(timeline.num_frames):
        (run,) = seeking.plan_runs(timeline, [number])
        assert packets.pts[run.first] <= timeline.pts[number]
        before = np.flatnonzero(packets.access[: packets.of_frame[number] + 1])[-1]
        leading += int(packets.pts[before] > timeline.pts[number])
    assert leading > 5  # the file has such frames


def test_damage_outside_a_stretch_is_no_fault_and_inside_it_is(tmp_path):
    path = tmp_path / "a.mov"
    write_video(path, moving(100), "mjpeg", "yuvj420p")
    spoil_packets(path, 50, 55)
    job = FileJob(str(path), ((1.0, 3.0), (5.0, 5.5)), 12)
    assert [bool(segment.fault) for segment in inspect_file(job).segments] == [True, True]
    job = FileJob(str(path), ((1.0, 3.0),), 12)
    assert inspect_file(job).segments[0].fault == ""


def test_a_file_with_a_broken_index_is_decoded_from_its_start(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mkv", moving(FRAMES), options={"g": "20"})
    content = bytearray(path.read_bytes())
    cues = content.rindex(b"\x1c\x53\xbb\x6b")
    # The position of every entry (CueClusterPosition, 0xf1) leads to the first cluster or nowhere.
    for i in range(cues, len(content) - 3):
        if content[i] == 0xF1 and content[i + 1] in (0x81, 0x82, 0x83):
            size = content[i + 1] - 0x80
            content[i + 2 : i + 2 + size] = (i % 251).to_bytes(size, "big")
    path.write_bytes(bytes(content))
    use = lambda: read_frames(str(path), 32, 12, start=12.0, end=14.0)  # noqa: E731
    assert np.array_equal(use(), by_full_decode(monkeypatch, use))


def test_packets_that_differ_after_a_seek_are_not_trusted(files, monkeypatch):
    timeline = timeline_of(files("h264.mp4"))
    wrong = timeline.packets._replace(pts=timeline.packets.pts + 1)
    with decode.open_video(files("h264.mp4")) as (container, stream):
        with pytest.raises(seeking.NotTrusted):
            next(seeking.packets_of_run(container, stream, wrong, 60))


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(30))
    assert timeline_of(str(path)).num_frames == 30
    write_video(path, moving(40))
    assert timeline_of(str(path)).num_frames == 40

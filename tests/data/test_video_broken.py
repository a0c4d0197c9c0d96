"""Files that are damaged, truncated or not videos: read one by one, and checked together."""

import os
from pathlib import Path

import numpy as np
import pytest

from data.checks.quick_check import check_clips, require_sound
from data.errors import DataError
from data.records import Clip
from data.video.decode import probe, read_frames, require_stretch
from tests.helpers.clips import cover, numbered, numbers, spoil_packets, write_sound, write_video


def test_lost_frames_are_replaced_by_the_last_good_one(tmp_path):
    path = write_video(tmp_path / "a.mov", numbered(40), "png", "rgb24", rate=5)
    spoil_packets(path, 9, 16)
    assert numbers(read_frames(str(path), 32, 12)) == [0, 5, 8, 8, 20, 25, 30, 35]
    spoil_packets(path, 0, 2)
    spoil_packets(path, 30, 39)
    assert numbers(read_frames(str(path), 32, 12)) == [3, 5, 8, 8, 20, 25, 29, 29]


def test_truncated_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 4, (40, 48, 64, 3), dtype=np.uint8)
    path = write_video(
        tmp_path / "a.mkv", np.stack(numbered(40)) + noise, "mjpeg", "yuvj420p", rate=5
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    shown = numbers(read_frames(str(path), 32, 12))
    assert len(shown) in (4, 5) and shown == [0, 5, 10, 15, 20][: len(shown)]


def test_start_beyond_the_end_is_an_error(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", numbered(20)))
    for use in (
        lambda: read_frames(path, 32, 12, start=2.0, end=9.0),
        lambda: require_stretch(path, 2.0, None),
    ):
        with pytest.raises(DataError, match=r"a\.mp4: start 2 s is beyond .* \(2\.00 s\)"):
            use()
    assert numbers(read_frames(path, 32, 12, start=1.95, end=9.0)) == [19]
    require_stretch(path, 1.95, None)


def broken_files(folder: Path) -> dict[str, str]:
    """Path -> the expected reason."""
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


def test_error_names_the_file_in_one_line(tmp_path):
    for path, reason in broken_files(tmp_path).items():
        for use in (probe, lambda path: read_frames(path, 32, 12)):
            with pytest.raises(DataError) as caught:
                use(path)
            message = str(caught.value)
            assert message.startswith(f"{path}: not a readable video ({reason}"), message
            assert "\n" not in message


def test_files_are_closed(tmp_path):
    paths = [*broken_files(tmp_path), str(tmp_path / "whole.mp4")]
    before = len(os.listdir("/proc/self/fd"))
    for path in paths * 3:
        try:
            read_frames(path, 32, 12)
            probe(path)
        except DataError:
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_check_clips_and_require_sound(tmp_path, capfd):
    reasons = broken_files(tmp_path)
    paths = [path for path, reason in reasons.items() if reason[0] != "I"]
    whole = str(tmp_path / "whole.mp4")
    good = Clip("good", whole, ("x",), "train", 0.0, 1.0)
    late = Clip("late", whole, ("x",), "train", 5.0, 6.0)
    bad = [Clip(f"id{i}", path, ("x",), "train") for i, path in enumerate(paths)]
    clips = [good, *bad, late, good]
    faults = check_clips(clips, progress=False)
    assert [clip for clip, _ in faults] == [*bad, late]
    reasons = {clip.clip_id: reason for clip, reason in faults}
    assert reasons["id0"] == "not a readable video (empty file)"
    assert "beyond the end" in reasons["late"]
    assert any(reason == "no such file" for reason in reasons.values())
    assert capfd.readouterr().err == ""
    with pytest.raises(DataError) as caught:
        require_sound(clips)
    message = str(caught.value)
    assert message.startswith(f"{len(bad) + 1} of {len(clips)} clips")
    assert "id0" in message and "id2" in message and "id3" not in message
    assert bad[0].path in message and "\n" not in message
    require_sound([good])
    assert capfd.readouterr().out == ""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.records import Clip
from hvp_jax.evaluation import contact_sheet, metrics, report

FIGURES = {"R@1": 47.05, "R@5": 80.0, "R@10": 90.0, "R@50": 100.0, "MdR": 2.0, "MnR": 3.25}
GREEN = (0x15, 0x99, 0x5B)


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share(image: np.ndarray, color) -> float:
    """Of the pixels, those within 8 of 255 of a colour."""
    return float((abs(image - color).max(axis=-1) <= 8).mean())


def clip(color=(200, 30, 30), frames=12, height=64, width=64) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (frames, height, width, 3))


def query(right_at: int | None, text="a red square", **shape) -> contact_sheet.Query:
    hits = [
        contact_sheet.Hit(f"clip {i}", clip(**shape), 1 - i / 10, i == right_at) for i in range(5)
    ]
    return contact_sheet.Query(text, 17.5 if right_at is None else right_at + 1, hits)


def test_table():
    results = {
        "text_to_video": FIGURES,
        "video_to_text": FIGURES | {"R@1": 12.34},
        "counts": {"videos": 200, "captions": 1400},
    }
    lines = report.table(results).splitlines()
    assert lines[0].split() == list(metrics.chance(200))
    assert lines[1].split()[3:] == ["47.0", "80.0", "90.0", "100.0", "2.0", "3.2"]
    assert lines[2].split()[:4] == ["video", "to", "text", "12.3"]
    assert lines[3].split() == ["chance", "0.5", "2.5", "5.0", "25.0", "100.5", "100.5"]
    assert "1,400 captions, 200 videos" in lines[4]
    assert len({len(line) for line in lines[:4]}) == 1  # columns are aligned


def curve(path, losses, evaluations=()):
    rows = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    rows += [
        {"step": step, "text_to_video": FIGURES, "counts": {"videos": 50}} for step in evaluations
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.loss_curve(path, path.with_suffix(".png"))
    return picture(path.with_suffix(".png"))


def test_loss_curve_has_a_second_panel_where_there_are_figures(tmp_path):
    losses = np.linspace(60, 5, 100).tolist()
    alone = curve(tmp_path / "a.jsonl", losses)
    both = curve(tmp_path / "b.jsonl", losses, evaluations=(50, 100))
    assert both.shape[1] > alone.shape[1]
    blue, orange = (0x2F, 0x5F, 0xD0), (0xD9, 0x82, 0x2B)
    assert share(alone, blue) > 0.001 and share(alone, orange) == 0
    assert share(both[:, both.shape[1] * 6 // 10 :], orange) > 0.001
    assert share(alone[:20], (0xFC, 0xFC, 0xFD)) == 1  # a light margin


def test_loss_curve_with_few_rows_and_losses_that_are_not_finite(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve(tmp_path / "one.jsonl", [3.0], evaluations=(1,))
        image = curve(tmp_path / "nan.jsonl", [3.0, None, 2.0, None, 1.0])
    assert share(image, (0xD9, 0x82, 0x2B)) > 0  # marked
    for losses in ([], [None, None]):
        with pytest.raises(DataError, match="holds no loss"):
            curve(tmp_path / "none.jsonl", losses)
    with pytest.raises(DataError, match="absent.jsonl does not exist"):
        report.loss_curve(tmp_path / "absent.jsonl", tmp_path / "a.png")


def test_smoothing_keeps_a_constant_and_the_ends():
    assert report._smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    assert report._smooth(np.array([5.0])) == pytest.approx([5.0])
    noisy = 10 + np.random.default_rng(0).standard_normal(500)
    assert report._smooth(noisy).std() < 0.5 * noisy.std()


def test_contact_sheet_marks_the_right_clip_where_it_stands(tmp_path):
    path = tmp_path / "sheet.png"
    contact_sheet.contact_sheet(path, [query(2), query(None)])
    image = picture(path)
    scale = image.shape[1] / (
        2 * contact_sheet.MARGIN
        + contact_sheet.QUERY
        + 5 * (contact_sheet.STRIP + contact_sheet.GAP)
    )
    green = []
    for row in range(2):
        top = contact_sheet.HEAD + row * contact_sheet.ROW
        for place in range(5):
            left = contact_sheet._strip_left(place)
            y, x = slice(int(top * scale), int((top + contact_sheet.ROW) * scale)), left * scale
            strip = image[y, int(x) : int(x + contact_sheet.STRIP * scale)]
            green.append(share(strip, GREEN) > 0.03)
            assert share(strip, (200, 30, 30)) > 0.4  # the frames are drawn
    assert green == [place == 2 for place in range(5)] + [False] * 5
    # The query's column tells the rank: in green where the clip is shown, else in orange.
    column = image[:, : int((contact_sheet.MARGIN + contact_sheet.QUERY) * scale)]
    top, bottom = np.split(column, [int((contact_sheet.HEAD + contact_sheet.ROW) * scale)])
    assert share(top, GREEN) > 0 and share(bottom, GREEN) == 0
    assert share(bottom, (0xD9, 0x82, 0x2B)) > 0


@pytest.mark.parametrize(
    "text",
    ["日本語 🎉", "$x^2 $ and $\\frac{$", "\x00\x07 \ud800 \u202e", "", "W" * 500, "a\nb\tc " * 40],
    ids=ascii,
)
def test_contact_sheet_of_odd_text(tmp_path, text):
    row = query(0, text)
    row = row._replace(hits=[hit._replace(clip_id=text) for hit in row.hits])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        contact_sheet.contact_sheet(tmp_path / "sheet.png", [row])
    assert not said


@pytest.mark.parametrize("frames", [0, 1, 3, 5, 30])
def test_contact_sheet_of_odd_clips(tmp_path, frames):
    shapes = [{"height": 30, "width": 90}, {"height": 224, "width": 120}, {"height": 1, "width": 1}]
    rows = [query(1, frames=frames, **shape) for shape in shapes]
    rows.append(rows[0]._replace(hits=rows[0].hits[:2]))  # a gallery of two
    contact_sheet.contact_sheet(tmp_path / "sheet.png", rows)
    picture(tmp_path / "sheet.png")


def test_a_clip_of_few_frames_leaves_the_rest_of_its_strip_blank(tmp_path):
    row = query(0, frames=2)
    contact_sheet.contact_sheet(tmp_path / "sheet.png", [row._replace(hits=row.hits[:1])])
    image = picture(tmp_path / "sheet.png")
    cell = contact_sheet.FRAME**2 * 4 / image[..., 0].size  # the share of one frame
    assert share(image, (200, 30, 30)) == pytest.approx(2 * cell, rel=0.1)
    assert (image == 242).all(axis=-1).mean() == pytest.approx(2 * cell, rel=0.1)
    assert share(image, GREEN) < cell


def test_frames_are_spread_over_the_clip_and_cropped():
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 10, 3), np.uint8)
    frames[:, :, :2] = frames[:, :, -2:] = 255
    picked = contact_sheet._pick(frames)
    assert [frame.shape for frame in picked] == [(6, 6, 3)] * 4
    assert [frame.max() for frame in picked] == [0, 4, 7, 11]
    assert len(contact_sheet._pick(frames[:3])) == 3 and contact_sheet._pick(frames[:0]) == []


def test_the_sheet_takes_plain_tuples(tmp_path):
    hit = ("clip", clip(), 0.5, True)
    contact_sheet.contact_sheet(tmp_path / "sheet.png", [("a red square", 1, [hit] * 5)])
    assert share(picture(tmp_path / "sheet.png"), GREEN) > 0.01


def test_sheet_of_an_evaluation(tmp_path, monkeypatch):
    captions = [("a",), ("b", "b again"), ("c", "c again"), *((str(i),) for i in range(3, 40))]
    clips = [Clip(f"clip {i}", "", words, "test") for i, words in enumerate(captions)]
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((42, 40))
    similarity[0] = 0  # of the first clip: no score tells it from the others
    similarity[-1, [39, 7]] = (9, 10)
    source = {clip.clip_id: np.full((3, 4, 4, 3), i) for i, clip in enumerate(clips)}
    drawn = []
    monkeypatch.setattr(report, "contact_sheet", lambda path, rows: drawn.extend(rows))
    report.contact_sheet_of(tmp_path / "sheet.png", clips, similarity, source)
    assert len(drawn) == report.SHOWN
    assert (drawn[0].text, drawn[0].rank) == ("a", 20.5)
    assert drawn[1].text == "6"  # row 8 of the scores
    assert drawn[1].hits[0].score == similarity[8].max()
    assert drawn[1].hits[0].clip_id == f"clip {similarity[8].argmax()}"
    last = drawn[-1]
    assert (last.text, last.rank) == ("39", 2)
    assert [hit.clip_id for hit in last.hits[:2]] == ["clip 7", "clip 39"]
    assert [hit.is_right for hit in last.hits] == [False, True, False, False, False]
    assert last.hits[0].frames.max() == 7

    drawn.clear()
    report.contact_sheet_of(tmp_path / "sheet.png", clips[:2], similarity[:3, :2], source)
    assert [(row.text, len(row.hits)) for row in drawn] == [("a", 2), ("b", 2)]


def test_line():
    line = report.line({"text_to_video": FIGURES, "video_to_text": FIGURES | {"R@1": 12.34}})
    assert line == "T2V R@1 47.0 R@10 90.0 MdR 2.0  V2T R@1 12.3 R@10 90.0 MdR 2.0"

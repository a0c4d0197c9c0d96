import json
import warnings

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.records import Clip
from hvp_jax.evaluation import contact_sheet, metrics, report

METRICS = {"R@1": 47.05, "R@5": 80.0, "R@10": 90.0, "R@50": 100.0, "MdR": 2.0, "MnR": 3.25}
GREEN = (0x15, 0x99, 0x5B)


def read_image(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share(image: np.ndarray, color) -> float:
    """The share of pixels within 8 of 255 of a colour."""
    return float((abs(image - color).max(axis=-1) <= 8).mean())


def clip(color=(200, 30, 30), frames=12, height=64, width=64) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (frames, height, width, 3))


def query(correct_at: int | None, text="a red square", **shape) -> contact_sheet.Query:
    hits = [
        contact_sheet.Hit(f"clip {i}", clip(**shape), 1 - i / 10, i == correct_at) for i in range(5)
    ]
    return contact_sheet.Query(text, 17.5 if correct_at is None else correct_at + 1, hits)


def test_table_has_both_directions_and_chance():
    results = {
        "text_to_video": METRICS,
        "video_to_text": METRICS | {"R@1": 12.34},
        "counts": {"videos": 200, "captions": 1400},
    }
    lines = report.table(**results).splitlines()
    assert lines[0].split() == list(metrics.chance(200))
    assert lines[1].split()[3:] == ["47.0", "80.0", "90.0", "100.0", "2.0", "3.2"]
    assert lines[2].split()[:4] == ["video", "to", "text", "12.3"]
    assert lines[3].split() == ["chance", "0.5", "2.5", "5.0", "25.0", "100.5", "100.5"]
    assert "1,400 captions, 200 videos" in lines[4]
    assert len({len(line) for line in lines[:4]}) == 1  # columns are aligned


def curve(workdir, losses, evaluations=()):
    rows = [{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)]
    rows += [
        {"step": step, "text_to_video": METRICS, "counts": {"videos": 50}} for step in evaluations
    ]
    workdir.mkdir(exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.loss_curve(workdir, workdir / "curve.png")
    return read_image(workdir / "curve.png")


def test_loss_curve_has_a_second_panel_if_there_are_evaluations(tmp_path):
    losses = np.linspace(60, 5, 100).tolist()
    alone = curve(tmp_path / "a", losses)
    both = curve(tmp_path / "b", losses, evaluations=(50, 100))
    assert both.shape[1] > alone.shape[1]
    blue, orange = (0x2F, 0x5F, 0xD0), (0xD9, 0x82, 0x2B)
    assert share(alone, blue) > 0.001 and share(alone, orange) == 0
    assert share(both[:, both.shape[1] * 6 // 10 :], orange) > 0.001
    assert share(alone[:20], (0xFC, 0xFC, 0xFD)) == 1  # a light margin


def test_loss_curve_of_few_rows_and_of_non_finite_losses(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve(tmp_path / "one", [3.0], evaluations=(1,))
        image = curve(tmp_path / "nan", [3.0, None, 2.0, None, 1.0])
    assert share(image, (0xD9, 0x82, 0x2B)) > 0  # marked
    for losses in ([], [None, None]):
        with pytest.raises(DataError, match="contain no loss"):
            curve(tmp_path / "none", losses)
    with pytest.raises(DataError, match="absent/metrics.jsonl does not exist"):
        report.loss_curve(tmp_path / "absent", tmp_path / "a.png")


def test_smoothing_does_not_change_constants_or_bias_the_ends():
    assert report._smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    assert report._smooth(np.array([5.0])) == pytest.approx([5.0])
    noisy = 10 + np.random.default_rng(0).standard_normal(500)
    assert report._smooth(noisy).std() < 0.5 * noisy.std()


def test_contact_sheet_marks_the_correct_clip_at_its_rank(tmp_path):
    path = tmp_path / "sheet.png"
    contact_sheet.draw_contact_sheet(path, [query(2), query(None)])
    image = read_image(path)
    scale = image.shape[1] / (
        2 * contact_sheet.MARGIN
        + contact_sheet.QUERY_WIDTH
        + 5 * (contact_sheet.STRIP_WIDTH + contact_sheet.STRIP_GAP)
    )
    green = []
    for row in range(2):
        top = contact_sheet.HEADER_HEIGHT + row * contact_sheet.ROW_HEIGHT
        for position in range(5):
            left = contact_sheet._strip_left(position)
            y, x = (
                slice(int(top * scale), int((top + contact_sheet.ROW_HEIGHT) * scale)),
                left * scale,
            )
            strip = image[y, int(x) : int(x + contact_sheet.STRIP_WIDTH * scale)]
            green.append(share(strip, GREEN) > 0.03)
            assert share(strip, (200, 30, 30)) > 0.4  # the frames are drawn
    assert green == [position == 2 for position in range(5)] + [False] * 5
    # The rank in the query's column is green if the correct clip is shown, else orange.
    column = image[:, : int((contact_sheet.MARGIN + contact_sheet.QUERY_WIDTH) * scale)]
    top, bottom = np.split(
        column, [int((contact_sheet.HEADER_HEIGHT + contact_sheet.ROW_HEIGHT) * scale)]
    )
    assert share(top, GREEN) > 0 and share(bottom, GREEN) == 0
    assert share(bottom, (0xD9, 0x82, 0x2B)) > 0


@pytest.mark.parametrize(
    "text",
    ["日本語 🎉", "$x^2 $ and $\\frac{$", "\x00\x07 \ud800 \u202e", "", "W" * 500, "a\nb\tc " * 40],
    ids=ascii,
)
def test_contact_sheet_of_unusual_text(tmp_path, text):
    row = query(0, text)
    row = row._replace(hits=[hit._replace(clip_id=text) for hit in row.hits])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", [row])
    assert not warned


@pytest.mark.parametrize("frames", [0, 1, 3, 5, 30])
def test_contact_sheet_of_unusual_clips(tmp_path, frames):
    shapes = [{"height": 30, "width": 90}, {"height": 224, "width": 120}, {"height": 1, "width": 1}]
    rows = [query(1, frames=frames, **shape) for shape in shapes]
    rows.append(rows[0]._replace(hits=rows[0].hits[:2]))  # a gallery of two
    contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", rows)
    read_image(tmp_path / "sheet.png")


def test_missing_frames_leave_the_rest_of_the_strip_blank(tmp_path):
    row = query(0, frames=2)
    contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", [row._replace(hits=row.hits[:1])])
    image = read_image(tmp_path / "sheet.png")
    cell = contact_sheet.FRAME_SIZE**2 * 4 / image[..., 0].size  # share of one frame
    assert share(image, (200, 30, 30)) == pytest.approx(2 * cell, rel=0.1)
    assert (image == 242).all(axis=-1).mean() == pytest.approx(2 * cell, rel=0.1)
    assert share(image, GREEN) < cell


def test_selected_frames_are_evenly_spaced_and_square():
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 10, 3), np.uint8)
    frames[:, :, :2] = frames[:, :, -2:] = 255
    selected = contact_sheet._select_frames(frames)
    assert [frame.shape for frame in selected] == [(6, 6, 3)] * 4
    assert [frame.max() for frame in selected] == [0, 4, 7, 11]
    assert (
        len(contact_sheet._select_frames(frames[:3])) == 3
        and contact_sheet._select_frames(frames[:0]) == []
    )


def test_contact_sheet_accepts_plain_tuples(tmp_path):
    hit = ("clip", clip(), 0.5, True)
    contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", [("a red square", 1, [hit] * 5)])
    assert share(read_image(tmp_path / "sheet.png"), GREEN) > 0.01


def test_draw_retrievals_selects_queries_and_their_best_clips(tmp_path, monkeypatch):
    captions = [("a",), ("b", "b again"), ("c", "c again"), *((str(i),) for i in range(3, 40))]
    clips = [Clip(f"clip {i}", "", words, "test") for i, words in enumerate(captions)]
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((42, 40))
    similarity[0] = 0  # the first clip ties with all others
    similarity[-1, [39, 7]] = (9, 10)
    source = {clip.clip_id: np.full((3, 4, 4, 3), i) for i, clip in enumerate(clips)}
    drawn = []
    monkeypatch.setattr(report, "draw_contact_sheet", lambda path, queries: drawn.extend(queries))
    report.draw_retrievals(tmp_path / "sheet.png", clips, similarity, source)
    assert len(drawn) == report.NUM_QUERIES
    assert (drawn[0].text, drawn[0].rank) == ("a", 20.5)
    assert drawn[1].text == "6"  # row 8 of the scores
    assert drawn[1].hits[0].score == similarity[8].max()
    assert drawn[1].hits[0].clip_id == f"clip {similarity[8].argmax()}"
    last = drawn[-1]
    assert (last.text, last.rank) == ("39", 2)
    assert [hit.clip_id for hit in last.hits[:2]] == ["clip 7", "clip 39"]
    assert [hit.is_correct for hit in last.hits] == [False, True, False, False, False]
    assert last.hits[0].frames.max() == 7

    drawn.clear()
    report.draw_retrievals(tmp_path / "sheet.png", clips[:2], similarity[:3, :2], source)
    assert [(row.text, len(row.hits)) for row in drawn] == [("a", 2), ("b", 2)]


def test_line_has_the_main_metrics():
    line = report.line({"text_to_video": METRICS, "video_to_text": METRICS | {"R@1": 12.34}})
    assert line == "T2V R@1 47.0 R@10 90.0 MdR 2.0  V2T R@1 12.3 R@10 90.0 MdR 2.0"


def test_a_sheet_is_replaced_when_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"the sheet of another evaluation")

    def save_half(figure, file, **options):
        file.write(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(contact_sheet.Figure, "savefig", save_half)
    with pytest.raises(KeyboardInterrupt):
        contact_sheet.draw_contact_sheet(path, [query(2)])
    assert path.read_bytes() == b"the sheet of another evaluation"
    assert list(tmp_path.iterdir()) == [path]

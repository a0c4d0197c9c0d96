"""ranks.npz and the TREC files, which `ir-measures` reads."""

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, Success

from data.errors import DataError, UsageError
from data.records import Clip
from hvp_jax.evaluation import metrics, rankings, trec

IDS = (
    "plain",
    "two words",
    "tab\tand\nline",
    "日本",
    "100%",
    "a#0",
    "a",
    "\ud800",
    "x\u3000y",
    "%20",
)


def made_up(seed: int = 0, count: int = 60, *, ties: bool = False, captions=(1, 2, 3)):
    """Clips with unusual ids and several captions, and their scores."""
    rng = np.random.default_rng(seed)
    clips = [
        Clip(
            (IDS[i] if i < len(IDS) else f"clip {i}"),
            "",
            tuple(f"caption {j}" for j in range(captions[i % len(captions)])),
            "test",
        )
        for i in range(count)
    ]
    own = np.repeat(np.arange(count), [len(clip.captions) for clip in clips])
    matrix = rng.standard_normal((len(own), count))
    matrix[np.arange(len(own)), own] += 2
    return clips, matrix.round(0) if ties else matrix


def measured(folder, suffix: str = "") -> dict[str, dict[str, float]]:
    """Each query's values by ir-measures, from the files of a direction."""
    qrels = list(ir_measures.read_trec_qrels(str(folder / f"qrels{suffix}.trec")))
    run = list(ir_measures.read_trec_run(str(folder / f"run{suffix}.trec")))
    wanted = [Success @ 1, Success @ 5, Success @ 10, R @ 1, R @ 5, R @ 10, RR]
    values: dict[str, dict[str, float]] = {}
    for row in ir_measures.iter_calc(wanted, qrels, run):
        values.setdefault(str(row.measure), {})[row.query_id] = row.value
    return values


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("ties", [False, True])
def test_ir_measures_gives_our_figures(tmp_path, ties, dtype):
    clips, matrix = made_up(ties=ties)
    matrix = matrix.astype(dtype)
    ranks = rankings.rank(clips, matrix)
    trec.write(tmp_path, ranks, matrix)
    for suffix, ours in (("", ranks.text_to_video), (".v2t", ranks.video_to_text)):
        theirs, expected = measured(tmp_path, suffix), metrics.summary(ours)
        assert len(theirs["RR"]) == len(ours)
        for k in (1, 5, 10):
            for name in (f"Success@{k}", f"R@{k}"):
                mean = 100 * np.mean(list(theirs[name].values()))
                assert mean == pytest.approx(expected[f"R@{k}"], abs=1e-9), (suffix, name)
        reciprocal = sorted(theirs["RR"].values())
        assert reciprocal == pytest.approx(sorted(1 / np.ceil(ours)), abs=1e-9)
    assert (ranks.text_to_video % 1 > 0).any() == ties  # shared ranks, which are rounded up


def test_scores_that_a_tool_would_round_together_keep_their_order(tmp_path):
    clips, matrix = made_up(captions=(1,))
    matrix = 1 + 1e-12 * matrix  # all the same as float32
    ranks = rankings.rank(clips, matrix)
    assert 1 < np.mean(ranks.text_to_video) < 30
    trec.write(tmp_path, ranks, matrix)
    values = sorted(measured(tmp_path)["RR"].values())
    assert values == pytest.approx(sorted(1 / ranks.text_to_video), abs=1e-9)


def test_the_lines_of_a_run(tmp_path):
    clips = [Clip(name, "", ("x",), "test") for name in ("a b", "c", "d")]
    matrix = np.array([[0.5, 2.0, 0.5], [0.25, 1.0, -0.0], [-1.5, -1.0, -1.0]])
    trec.write(tmp_path, rankings.rank(clips, matrix), matrix)
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines[:2] == ["a%20b#0 Q0 c 1 2 hvp", "a%20b#0 Q0 d 2 0.5 hvp"]
    assert lines[2] == "a%20b#0 Q0 a%20b 3 0.49999997 hvp"  # our rank of it is 2.5
    assert lines[3:6] == ["c#0 Q0 c 1 1 hvp", "c#0 Q0 a%20b 2 0.25 hvp", "c#0 Q0 d 3 0 hvp"]
    assert lines[6:8] == ["d#0 Q0 c 1 -1 hvp", "d#0 Q0 d 2 -1.00000012 hvp"]
    assert (tmp_path / "qrels.trec").read_text() == "a%20b#0 0 a%20b 1\nc#0 0 c 1\nd#0 0 d 1\n"


def test_a_great_gallery_is_cut(tmp_path, monkeypatch):
    assert trec.depth(1000, 1000) == 1000 and trec.depth(27_763, 670) == 100
    assert trec.depth(4917, 4917) == 203 and trec.depth(10, 20_000) == 1000
    monkeypatch.setattr(trec, "LEAST", 3)
    monkeypatch.setattr(trec, "PAIRS", 0)
    clips, matrix = made_up()
    trec.write(tmp_path, rankings.rank(clips, matrix), matrix)
    assert (tmp_path / "run.trec").read_text().count("\n") == 3 * len(matrix)


def test_ranks_are_read_as_they_were_written(tmp_path):
    clips, matrix = made_up(ties=True)
    ranks = rankings.rank(clips, matrix)
    rankings.write(tmp_path, ranks)
    again = rankings.read(tmp_path)
    for name, value in ranks._asdict().items():
        assert np.array_equal(getattr(again, name), value), name
    own = ranks.clip_of_caption
    assert metrics.summary(ranks.text_to_video) == metrics.text_to_video(matrix, own)
    assert metrics.summary(ranks.video_to_text) == metrics.video_to_text(matrix, own)
    assert ranks.caption_ids[:3] == ["plain#0", "two words#0", "two words#1"]
    assert len(set(ranks.caption_ids)) == len(matrix)


def test_the_fingerprint_is_of_the_clips_and_captions():
    clips, matrix = made_up(captions=(1,))
    data = rankings.rank(clips, matrix).data
    assert rankings.rank(clips, -matrix).data == data
    changed = [Clip("plain", "", ("another caption",), "test"), *clips[1:]]
    assert rankings.rank(changed, matrix).data != data
    assert rankings.rank(clips[::-1], matrix).data != data


def test_damaged_and_missing_ranks_are_named(tmp_path):
    with pytest.raises(DataError, match="ranks.npz does not exist: run `eval`"):
        rankings.read(tmp_path)
    clips, matrix = made_up()
    rankings.write(tmp_path, rankings.rank(clips, matrix))
    path = tmp_path / "ranks.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="ranks.npz is damaged, run `eval` again"):
        rankings.read(tmp_path)
    np.savez(path, text_to_video=np.array([object()]))  # a pickle
    with pytest.raises(DataError, match="ranks.npz is damaged"):
        rankings.read(tmp_path)
    with pytest.raises(UsageError, match="cannot write .*ranks.npz"):
        rankings.write(tmp_path / "absent", rankings.rank(clips, matrix))

"""Reranked scores against the papers' formulas, written out."""

import numpy as np
import pytest

from data.errors import UsageError
from data.records import Clip
from hvp_jax.cli import flags, main
from hvp_jax.evaluation import metrics, report, rerank

CLIPS = 12
OWN = np.repeat(np.arange(CLIPS), 2)


def scores(seed: int, rows: int = 2 * CLIPS) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.2, 0.9, (rows, CLIPS))


def test_dual_softmax():
    s, expected = scores(0), np.empty((2 * CLIPS, CLIPS))
    for i in range(2 * CLIPS):
        for j in range(CLIPS):
            expected[i, j] = s[i, j] * np.exp(7 * s[i, j]) / np.exp(7 * s[:, j]).sum()
    assert rerank.dual_softmax(s, 7.0, axis=0) == pytest.approx(expected)
    assert rerank.dual_softmax(s.T, 7.0, axis=1).T == pytest.approx(expected)


def test_inverted_softmax_orders_the_clips_of_a_query_as_the_paper():
    s, bank = scores(1), scores(2, 50)
    normalized = np.exp(20 * s) / np.exp(20 * bank).sum(axis=0)
    assert np.exp(rerank.inverted_softmax(s, bank, 20.0)) == pytest.approx(normalized)


def test_dynamic_inverted_softmax_changes_the_queries_of_active_clips_only():
    s, bank = scores(3), scores(4, 50)
    bank[:, ::2] -= 2  # no caption of the bank prefers an even clip
    normalized = np.exp(20 * s) / np.exp(20 * bank).sum(axis=0)
    expected = s.copy()
    for i, row in enumerate(s):
        if row.argmax() in {b.argmax() for b in bank}:
            expected[i] = np.log(normalized[i])
    changed = rerank.dynamic_inverted_softmax(s, bank, 20.0)
    assert changed == pytest.approx(expected)
    kept = (changed == s).all(axis=1)
    assert 0 < kept.sum() < len(s) and (s[kept].argmax(axis=1) % 2 == 0).all()


def test_great_scores_do_not_overflow():
    s = 1e4 * scores(5)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        for changed in (rerank.dual_softmax(s, 100.0, 0), rerank.inverted_softmax(s, s, 20.0)):
            assert np.isfinite(changed).all()


def test_the_figures_have_what_each_method_sees():
    s, bank = scores(6).astype(np.float32), scores(7, 30).astype(np.float32)
    result = rerank.figures(("dsl", "qbnorm", "dis"), s, bank, OWN)
    assert list(result) == ["dsl", "qbnorm", "dis"]
    dual = rerank.dual_softmax(s.astype(float), rerank.DSL_BETA, 0)
    assert result["dsl"]["text_to_video"] == metrics.text_to_video(dual, OWN)
    dual = rerank.dual_softmax(s.astype(float), rerank.DSL_BETA, 1)
    assert result["dsl"]["video_to_text"] == metrics.video_to_text(dual, OWN)
    assert "all queries of the test at once" in result["dsl"]["sees"]
    for name in ("qbnorm", "dis"):
        assert set(result[name]) == {"text_to_video", "sees"}
        assert result[name]["sees"].startswith("sees 30 captions of split train")
    text = report.reranked_table(result)
    assert "dsl sees all queries of the test at once" in text
    assert [line.split()[:2] for line in text.splitlines()[1:5]] == [
        ["dsl", "T2V"], ["dsl", "V2T"], ["qbnorm", "T2V"], ["dis", "T2V"],
    ]  # fmt: skip
    assert rerank.figures((), s, bank, OWN) == {}


def test_a_hub_is_put_down_by_each_method():
    """A clip that every caption prefers, in the test and in the bank."""
    s = 0.3 * np.eye(CLIPS)[OWN] + 0.01 * scores(8)
    bank = 0.3 * np.eye(CLIPS)[np.arange(60) % CLIPS] + 0.01 * scores(9, 60)
    s[:, 0] += 0.4
    bank[:, 0] += 0.4
    raw = metrics.text_to_video(s, OWN)["R@1"]
    assert raw < 10
    for name, result in rerank.figures(("dsl", "qbnorm", "dis"), s, bank, OWN).items():
        assert result["text_to_video"]["R@1"] > 90, name


def test_the_bank_is_chosen_by_seed(monkeypatch):
    clips = [Clip(f"c{i}", "", (f"a {i}", f"b {i}"), "train") for i in range(10)]
    assert len(rerank.caption_bank(clips, 0)) == 20
    monkeypatch.setattr(rerank, "BANK", 7)
    chosen = rerank.caption_bank(clips, 0)
    texts = [clip.captions for clip in chosen]
    assert len(set(texts)) == 7 and all(len(text) == 1 for text in texts)
    assert texts == [clip.captions for clip in rerank.caption_bank(clips, 0)]
    assert texts != [clip.captions for clip in rerank.caption_bank(clips, 1)]


def test_the_flag_takes_names_of_methods(tmp_path):
    assert flags.names_of("dsl", "dis")("dis,dsl") == ("dis", "dsl")
    for value in ("softmax", "dsl,dsl", "dsl,", ","):
        with pytest.raises(UsageError, match="--rerank: expected different names from dsl, qbnorm"):
            main.check(["eval", f"--workdir={tmp_path}", f"--rerank={value}"])

"""Searches of an index: the scores of eval, both stages, conditions, examples and bad input."""

import json
import os

import numpy as np
import pytest

from data.batches.frame_sources import FileFrames
from data.errors import DataError, UsageError
from data.records import Clip, Segment
from hvp_jax.evaluation import metrics
from hvp_jax.evaluation.scorer import Scorer, score_split
from hvp_jax.parallel.partitioner import Partitioner
from hvp_jax.search import recall
from hvp_jax.search.query import Index
from tests.search.conftest import CAPTIONS, LONG, NAMES, SECONDS

CLIPS = len(NAMES) + 4  # and four stretches of the long video


@pytest.fixture(scope="module")
def matrix(retriever, videos):
    """Eval's scores of the captions and the short videos, by the names of the videos."""
    padded = [*CAPTIONS, *(f"a video of number {i}" for i in range(len(NAMES) - len(CAPTIONS)))]
    clips = [
        Clip(name, str(videos / name), (text,), "test")
        for name, text in zip(NAMES, padded, strict=True)
    ]
    config = retriever.config.copy_and_resolve_references()
    config.eval.batch_size = 2
    scorer = Scorer(retriever.model, config, Partitioner("pmap"), num_frames=retriever.max_frames)
    source = FileFrames(clips, retriever.image_size, retriever.max_frames)
    return padded, score_split(scorer, retriever.params, clips, source)[0]


def test_an_exact_search_has_the_scores_and_the_figures_of_eval(index, matrix):
    texts, expected = matrix
    found = index.search(texts, k=CLIPS, exact=True, where="start IS NULL")
    scores = np.array([[{h.path: h.score for h in hits}[n] for n in NAMES] for hits in found])
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    own = np.arange(len(texts))
    assert metrics.text_to_video(scores, own) == metrics.text_to_video(expected, own)
    assert all([h.score for h in hits] == sorted(h.score for h in hits)[::-1] for hits in found)


def test_both_stages_find_what_an_exact_search_finds(index):
    exact = index.search(CAPTIONS, k=4, exact=True)
    found = index.search(CAPTIONS, k=4, candidates=CLIPS)
    assert [[h.id for h in hits] for hits in found] == [[h.id for h in hits] for hits in exact]
    for ours, theirs in zip(sum(found, []), sum(exact, []), strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
    # Of few candidates, those of the vector are scored in full.
    few = index.search(CAPTIONS, k=2, candidates=2)
    scores = {(i, h.id): h.score for i, hits in enumerate(exact) for h in hits}
    for i, hits in enumerate(few):
        for hit in hits:
            assert hit.score == pytest.approx(scores.get((i, hit.id), hit.score), abs=1e-5)


def test_a_condition_selects_clips_in_both_stages(index):
    for exact in (False, True):
        (hits,) = index.search(["a dog"], where="path LIKE '2024/%' AND start IS NULL", exact=exact)
        assert {hit.path for hit in hits} == {name for name in NAMES if name.startswith("2024")}
        assert index.search(["a dog"], where="duration > 1000", exact=exact) == [[]]
        with pytest.raises(UsageError, match="--where=size > 3 .*No field named size"):
            index.search(["a dog"], where="size > 3", exact=exact)


def test_stretches_have_their_times_and_captions_are_kept(index):
    (hits,) = index.search(["a dog"], k=CLIPS)
    stretches = sorted((hit.start, hit.end) for hit in hits if hit.path == LONG)
    assert stretches == [(0, 20), (10, 30), (20, 40), (30, 50)] and len(hits) == CLIPS
    captions = {hit.path: hit.captions for hit in hits}
    assert captions["clip0.mp4"] == f"{CAPTIONS[0]}\na first caption\na second caption"
    assert captions["2024/it's.mp4"] == ""


def test_a_search_by_video_finds_the_video_and_similar_ones_leave_it_out(index, videos):
    best, *others = index.search_by_video(videos / "2024/it's.mp4", k=3)
    assert best.path == "2024/it's.mp4" and best.score == pytest.approx(1, abs=1e-4)
    assert [hit.id for hit in index.similar(best.id, k=2)] == [hit.id for hit in others]
    middle = f"{LONG}@10-30"
    similar = index.similar(middle, k=CLIPS, where="path LIKE '2024/%'")
    assert {hit.id for hit in similar} == {*NAMES[8:], f"{LONG}@30-50"}
    assert index.segment(middle) == Segment(str(videos / LONG), 10, 30)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), (" \n", "is empty"), ("word " * 500, "at most 10")]
)
def test_a_query_that_says_nothing_or_too_much_is_refused(index, text, message):
    with pytest.raises(UsageError, match=message) as refused:
        index.search(["a dog", text])
    assert "\n" not in str(refused.value)


def test_what_is_gone_is_named(index, videos):
    with pytest.raises(DataError, match="has no clip 'nothing'"):
        index.segment("nothing")
    os.rename(videos / "clip3.mp4", videos / "elsewhere")
    try:
        with pytest.raises(DataError, match="clip3.mp4 is gone since it was indexed"):
            index.segment("clip3.mp4")
    finally:
        os.rename(videos / "elsewhere", videos / "clip3.mp4")


def test_an_index_that_is_not_there_or_of_another_model_is_refused(built, index, tmp_path):
    with pytest.raises(UsageError, match="holds no index: make one with `index`"):
        Index.open(tmp_path / "none")
    content = json.loads((built.uri / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="has no clips yet: run the same `index` again"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(content | {"fingerprint": "another"}))
    with pytest.raises(UsageError, match="is another model than the one that .* was made with"):
        Index(tmp_path, index.retriever)
    (tmp_path / "index.json").write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(UsageError, match="has format 2, this version reads 1: make a new index"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="index.json: damaged"):
        Index.open(tmp_path)


def test_the_recall_is_that_of_a_search(index):
    """With fewer candidates than clips, the share is what `search` finds of the ten best."""
    measured = index.manifest.recall
    assert measured["rows"] == len(index) and len(measured["places"]) == len(CAPTIONS)
    exact = index.search(CAPTIONS, k=10, exact=True)
    for candidates in (10, 12):
        found = index.search(CAPTIONS, k=candidates, candidates=candidates)
        pairs = zip(found, exact, strict=True)
        kept = [hit.id in {h.id for h in hits} for hits, best in pairs for hit in best]
        share = index.recall(candidates)
        assert share["share"] == pytest.approx(np.mean(kept)) and share["queries"] == 6
    assert index.recall(len(index))["share"] == index.recall(3, exact=True)["share"] == 1


def test_the_places_of_the_best_clips_in_stage_one():
    pool = np.array([3.0, 1, 9, 2, 8, 7, 6, 5, 4, 0, 2.5, 10])
    assert recall._places(pool, np.empty(0), 0, 12) == [12, 3, 5, 6, 7, 8, 9, 1, 11, 4]
    assert recall._places(pool[:2], np.empty(0), 0, 2) == [1, 2]
    # One of 50 clips outside the pool is better than the tenth: of 100, there would be two.
    outside = np.array([2.2] + [0.0] * 49)
    assert recall._places(pool, outside, 100, 112) == [12, 3, 5, 6, 7, 8, 9, 1, 0, 0]
    places = {"rows": 112, "captions": True, "places": [[1, 2, 0, 60]]}
    assert recall.share(places, 50, 112)["share"] == 0.5
    assert recall.share(places, 112, 112)["share"] == 1 and recall.share(None, 5, 112) is None


def test_a_pool_smaller_than_the_table_gives_the_same_places(index, monkeypatch):
    measured = recall.measure(index.retriever, index.table)
    monkeypatch.setattr(recall, "POOL", len(index) - 1)
    assert recall.measure(index.retriever, index.table)["places"] == measured["places"]


def test_the_command_searches(run_cli, built, run_dir, tmp_path):
    """Several queries as JSON with a contact sheet, and the text for people."""
    (tmp_path / "queries.txt").write_text("a small dog\n\na cat\n")
    flags = f"--index={built.uri}", "--k=2", f"--queries={tmp_path / 'queries.txt'}"
    done = run_cli("search", *flags, "a car", "--json", f"--sheet={tmp_path / 'sheet.png'}")
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    assert [q["query"] for q in result["queries"]] == ["a car", "a small dog", "a cat"]
    assert result["recall"]["share"] == 1
    for query in result["queries"]:
        best, second = query["hits"]
        assert set(best) == {"path", "start", "end", "score"} and best["score"] >= second["score"]
        assert all(0 <= hit["start"] < hit["end"] for hit in query["hits"])
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        SECONDS == 20
        and str(run_dir) == json.loads((built.uri / "index.json").read_text())["weights"]
    )

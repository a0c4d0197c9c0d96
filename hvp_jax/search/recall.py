"""How much of the full ranking stage one keeps, measured on a sample of queries.

For each query, the best `POOL` clips of stage one and `RANDOM` clips of all are scored in full.
What is noted is the place in stage one of each of the ten best: if it is within the candidates of
a search, that search finds it. A random clip that is as good as these, and not among the best of
stage one, stands for all the clips that it was drawn from. If there are no more than `POOL` clips,
the figure is exact.
"""

from typing import Any

import jax
import lancedb
import numpy as np

from data import tokenizer
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search import scoring, vector_index
from hvp_jax.search import table as clips

TOP = 10
QUERIES = 64
POOL = RANDOM = 1000
BEYOND = 0  # the place of what is not in the pool; the first place is 1

GENERIC = tuple(
    f"{subject} {action}"
    for subject in ("a man", "a woman", "a child", "a dog", "a cat", "a car", "a group of people")
    for action in ("in a room", "outside", "in the street", "close to the camera", "in motion")
)


def measure(retriever: Retriever, table: lancedb.table.Table, seed: int = 0) -> dict[str, Any]:
    """The places in stage one of the ten best clips of each query, [queries][10].

    The queries are captions of the clips if they have some, else generic ones.
    """
    rows, rng = table.count_rows(), np.random.default_rng(seed)
    captions = _captions(table, rows, rng)
    text = retriever.encode_texts(captions or GENERIC)
    columns = [*clips.feature_columns(table.schema), "_rowid"]
    drawn = rng.choice(rows, min(rows, RANDOM if rows > POOL else POOL), replace=False)
    random = table.take_offsets(sorted(drawn.tolist())).select(columns).to_arrow()
    random_ids, random_features = random["_rowid"].to_numpy(), clips.to_features(random)
    random_scores = scoring.score(text, random_features, retriever.model.dtype)
    places = []
    for i in range(len(random_scores)):
        of_text = jax.tree.map(lambda x, i=i: x[i : i + 1], text)
        pool_ids = _stage_one(table, of_text.sentence[0], POOL)
        if rows <= POOL:
            # The pool is what was drawn, in another order.
            back = np.argsort(random_ids)[np.argsort(np.argsort(pool_ids))]
            places.append(_places(random_scores[i, back], np.empty(0), 0, rows))
            continue
        pool = table.take_row_ids(pool_ids.tolist()).select(columns).to_arrow()
        back = np.argsort(pool["_rowid"].to_numpy())[np.argsort(np.argsort(pool_ids))]
        scores = scoring.score(of_text, clips.to_features(pool), retriever.model.dtype)[0, back]
        outside = random_scores[i, ~np.isin(random_ids, pool_ids)]
        places.append(_places(scores, outside, rows - POOL, rows))
    return {"rows": rows, "captions": bool(captions), "places": places}


def share(measured: dict[str, Any] | None, candidates: int, rows: int) -> dict[str, Any] | None:
    """What share of the ten best a search with so many candidates finds; None if not measured."""
    if candidates >= rows:
        return of_everything(rows)
    if not measured:
        return None
    places = np.array([place for query in measured["places"] for place in query])
    kept = (places != BEYOND) & (places <= candidates)
    return {
        "top": TOP,
        "candidates": candidates,
        "share": float(kept.mean()),
        "queries": len(measured["places"]),
        "captions": measured["captions"],
        "clips": measured["rows"],
    }


def of_everything(rows: int) -> dict[str, Any]:
    """As `share`, if all clips are scored in full."""
    return {
        "top": TOP,
        "candidates": rows,
        "share": 1.0,
        "queries": 0,
        "captions": False,
        "clips": rows,
    }


def describe(found: dict[str, Any]) -> str:
    """The share as a line of text."""
    if not found["queries"]:
        return f"all {found['clips']:,} clips are scored in full"
    kind = "captions" if found["captions"] else "generic captions"
    return (
        f"stage one keeps {100 * found['share']:.1f}% of the full ranking's top {found['top']} "
        f"with {found['candidates']} candidates (measured with {found['queries']} {kind} on "
        f"{found['clips']:,} clips)"
    )


def _places(pool: np.ndarray, outside: np.ndarray, clips_outside: int, rows: int) -> list[int]:
    """The places in stage one of the best by the full scores `pool`, in the order of stage one.

    `outside` are full scores of a sample of the `clips_outside` other clips.
    """
    top = min(TOP, rows)
    best = np.argsort(-pool, kind="stable")[:top]
    better = int((outside > pool[best[-1]]).sum())
    lost = min(top, round(better * clips_outside / max(len(outside), 1)))
    return [int(place) + 1 for place in best[: top - lost]] + [BEYOND] * lost


def _stage_one(table: lancedb.table.Table, sentence: np.ndarray, count: int) -> np.ndarray:
    """The row ids of the best clips by the vector, best first."""
    query: Any = table.search(sentence)
    query = (
        query.distance_type("dot").nprobes(vector_index.PARTITIONS).limit(count).with_row_id(True)
    )
    return query.select(["_distance"]).to_arrow()["_rowid"].to_numpy()


def _captions(table: lancedb.table.Table, rows: int, rng: np.random.Generator) -> list[str]:
    """A caption of each of some random clips that have one."""
    drawn = rng.choice(rows, min(rows, 4 * QUERIES), replace=False)
    found = table.take_offsets(sorted(drawn.tolist())).select(["captions"]).to_arrow()
    texts = [text.partition("\n")[0] for text in found["captions"].to_pylist()]
    texts = [text for text in dict.fromkeys(texts) if tokenizer.encode(text)]
    return [texts[i] for i in rng.permutation(len(texts))[:QUERIES]]

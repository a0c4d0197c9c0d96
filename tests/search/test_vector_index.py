"""The index of the vectors: stage one finds with it what it finds without, also after rows came."""

import lance
import numpy as np
import pyarrow as pa

from hvp_jax.search import query, table, vector_index

ROWS, DIM, BEST = 1200, 64, 100


def write(uri, vectors, first):
    names = [str(first + i) for i in range(len(vectors))]
    empty = pa.array([None] * len(names), pa.float64())
    values = [names, names, empty, empty, empty, names]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM)
    content = pa.table([*values, vector], [*table.META, "vector"])
    lance.write_dataset(content, table.dataset_uri(uri), mode="append" if first else "create")


def nearest(uri, sentence):
    rows = query._nearest(table.find_table(uri).search(sentence), "dot", BEST, "")
    return rows["id"].to_numpy(zero_copy_only=False).astype(int)


def test_stage_one_finds_with_an_index_what_it_finds_without(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "MIN_ROWS", ROWS)
    monkeypatch.setattr(vector_index, "PARTITION_ROWS", ROWS // 4)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((ROWS + 50, DIM), np.float32)
    sentence = rng.standard_normal(DIM, np.float32)
    write(tmp_path, vectors[: ROWS - 1], 0)
    vector_index.ensure(tmp_path)
    assert not table.find_table(tmp_path).list_indices(), "too few rows for an index"
    for first, end in ((ROWS - 1, ROWS), (ROWS, ROWS + 50)):
        write(tmp_path, vectors[first:end], first)
        vector_index.ensure(tmp_path)
        (found,) = table.find_table(tmp_path).list_indices()
        assert (found.index_type, found.num_indexed_rows) == ("IvfRq", end)
        scores = vectors[:end] @ sentence
        best = np.argsort(-scores)
        ids = nearest(tmp_path, sentence)
        assert set(best[:10]) <= set(ids), "the best are among the candidates"
        assert len(set(ids) & set(best[:BEST])) >= 0.7 * BEST

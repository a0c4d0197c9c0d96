"""Times a search of a million clips, beside FAISS and NumPy on the same vectors.

    python benchmarks/search_million.py --index=DIR [--clips=1000000] [--stored=100000] [--json]

Makes an index of random vectors and tokens, of the sizes of ViT-B/32 with three taps and 12
frames (75 tokens of 512 components at each tap, int8), unless DIR holds one, and searches it by
the code that `search` uses. The model has random weights. Needs requirements-search.txt, FAISS
(`pip install faiss-cpu`), and about 120 kB of disk for each of the `--stored` clips: those have
tokens of their own, and the others share them, so that a million need 14 GB and not 118. The
vectors are all different.

Random vectors are the hardest for an index, since they form no groups. In each repeat all methods
answer the same query, one after the other; medians are reported.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import faiss
import jax
import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from configs import base
from data.storage.path import Path as StoragePath
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search import manifest, recall, vector_index
from hvp_jax.search import table as clips
from hvp_jax.search.query import CANDIDATES, Index, _nearest
from hvp_jax.weights.initial import build_model

FRAGMENT, BATCH = 50_000, 1_000  # rows of a fragment; of those that are made at a time
IVF_LISTS, IVF_PROBES = 1024, 64
REPEATS, WARM_UP = 20, 3


def random_model() -> Retriever:
    """ViT-B/32 with random weights."""
    config = base.get_config()
    config.model.variant = "ViT-B/32"
    return Retriever(build_model(config), StoragePath("random"), batch_size=8)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random float32 vectors of length 1."""
    x = rng.standard_normal(shape, dtype=np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def lists(x: np.ndarray) -> pa.Array:
    """[rows, size] as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


def vectors_of(number: int, rows: int) -> np.ndarray:
    """The vectors of a fragment."""
    return unit(np.random.default_rng((1, number)), rows, 512)


def meta_batch(number: int, rows: int, columns: pa.Schema) -> pa.Table:
    """A fragment without its tokens."""
    names = [f"{number:03d}/{i:05d}.mp4" for i in range(rows)]
    nothing = pa.nulls(rows, pa.float64())
    empty = pa.array([""] * rows)
    duration = pa.array(np.full(rows, 12.0))
    values = [pa.array(names)] * 2 + [nothing, nothing, duration, empty, empty]
    values.append(lists(vectors_of(number, rows)))
    return pa.table(values, schema=columns)


def token_batches(number: int, rows: int, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The tokens of a fragment: random directions, each with a scale to length 1."""
    rng = np.random.default_rng((2, number))
    dim, count = 512, columns.field("token_scale").type.list_size
    for first in range(0, rows, BATCH):
        size = min(BATCH, rows - first)
        tokens = rng.integers(-127, 128, (size, count, dim), np.int8)
        length = np.sqrt(np.einsum("rcd,rcd->rc", tokens, tokens, dtype=np.float32))
        weights = np.full((size, count), 3 / count, np.float32)
        columns_of = [lists(tokens.reshape(size, -1)), lists(1 / length), lists(weights)]
        yield pa.record_batch(columns_of, schema=columns)


def make(uri: str, model: Retriever, rows: int, stored: int) -> None:
    """Writes the index: fragments of a file with the vectors and one with the tokens."""
    columns = clips.schema(model, "int8")
    names = ["tokens", "token_scale", "token_weights"]
    of_meta = pa.schema([field for field in columns if field.name not in names])
    of_tokens = pa.schema([columns.field(name) for name in names])
    clips.create(uri, columns)
    target = clips.dataset_uri(uri)
    ids = {field.name(): field.id() for field in lance.dataset(target).lance_schema.fields()}

    def write(data: Any, part: pa.Schema) -> dict[str, Any]:
        limits = {"max_rows_per_file": FRAGMENT, "max_bytes_per_file": 1 << 40}
        (fragment,) = write_fragments(data, target, schema=part, **limits)
        (file,) = fragment.to_json()["files"]
        return file | {"fields": [ids[name] for name in part.names]}

    files = []
    for i in range(-(-stored // FRAGMENT)):
        print(f"tokens of fragment {i}", file=sys.stderr, flush=True)
        batches = token_batches(i, min(FRAGMENT, rows), of_tokens)
        files.append(write(pa.RecordBatchReader.from_batches(of_tokens, batches), of_tokens))
    fragments = []
    for i, first in enumerate(range(0, rows, FRAGMENT)):
        size = min(FRAGMENT, rows - first)
        meta = write(meta_batch(i, size, of_meta), of_meta)
        both = {"id": 0, "files": [meta, files[i % len(files)]], "physical_rows": size}
        fragments.append(FragmentMetadata.from_json(json.dumps(both)))
    operation = lance.LanceOperation.Append(fragments)
    version = lance.dataset(target).version
    lance.LanceDataset.commit(target, operation, read_version=version)
    manifest.write(
        uri,
        manifest.Manifest(
            fingerprint=model.fingerprint,
            weights="random",
            root="nowhere",
            segment_seconds=60,
            tokens="int8",
        ),
    )


def faiss_indices(vectors: np.ndarray) -> dict[str, Any]:
    """FAISS's exact index, and an inverted file."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    ivf = faiss.IndexIVFFlat(flat.__class__(512), 512, IVF_LISTS, faiss.METRIC_INNER_PRODUCT)
    ivf.train(vectors[:: max(1, len(vectors) // (40 * IVF_LISTS))])
    ivf.add(vectors)
    ivf.nprobe = IVF_PROBES
    return {"FAISS, flat": flat, f"FAISS, IVF {IVF_LISTS}, {IVF_PROBES} probes": ivf}


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    best = np.argpartition(-scores, count)[:count]
    return best[np.argsort(-scores[best])]


def stage_one_methods(index: Index, vectors: np.ndarray) -> dict[str, Callable]:
    """Name -> a function of a sentence that returns the numbers of the best clips."""

    def lance_index(sentence):
        rows = _nearest(index.table.search(sentence), "dot", CANDIDATES, "", columns=())
        numbers = rows["_rowid"].to_numpy().astype(np.uint64)  # fragment and row in it
        return (numbers >> 32).astype(int) * FRAGMENT + (numbers & 0xFFFFFFFF).astype(int)

    methods: dict[str, Callable] = {"this index": lance_index}
    methods["NumPy, all vectors"] = lambda q: best_of(vectors @ q, CANDIDATES)
    for name, index_of in faiss_indices(vectors).items():
        methods[name] = lambda q, f=index_of: f.search(q[None], CANDIDATES)[1][0]
    return methods


def measure(index: Index, vectors: np.ndarray) -> dict[str, Any]:
    """Medians in ms, and of stage one the share of the exact best ones that are found."""
    methods = stage_one_methods(index, vectors)
    rng = np.random.default_rng(3)
    words = ("man", "dog", "car", "plays", "red", "on", "a", "street", "guitar", "child", "runs")
    times: dict[str, list[float]] = {}
    found: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, function: Callable) -> Any:
        start = time.perf_counter()
        result = function()
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        return result

    for _ in range(REPEATS):
        sentence = unit(rng, 512)
        exact = best_of(vectors @ sentence, CANDIDATES).tolist()
        for name, method in methods.items():
            ids = set(timed(name, lambda m=method, q=sentence: m(q)).tolist())
            shares = len(ids & set(exact[:10])) / 10, len(ids & set(exact)) / CANDIDATES
            found.setdefault(name, []).append(shares)
        text = " ".join(rng.choice(words, 9))
        timed("text encoder", lambda t=text: index.retriever.encode_texts([t]))
        timed("search, both stages", lambda t=text: index.search([t]))
        timed("search, no second stage", lambda t=text: index.search([t], candidates=10))
    rows = {}
    for name, values in times.items():
        rows[name] = {"ms": statistics.median(values[WARM_UP:])}
        if name in found:
            top10, top = np.mean(found[name], axis=0)
            rows[name] |= {"of the best 10": float(top10), "of the best 200": float(top)}
    return rows


def gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--index", required=True)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--stored", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model, result = random_model(), {}
    if manifest.read(args.index) is None:
        make(args.index, model, args.clips, args.stored)
        start = time.perf_counter()
        vector_index.ensure(args.index)
        result["making the index of the vectors, s"] = time.perf_counter() - start
    index = Index(args.index, model)
    table = Path(clips.dataset_uri(args.index))
    result["GB"] = {part: gigabytes(table / part) for part in ("data", "_indices")}
    parts = range(-(-len(index) // FRAGMENT))
    vectors = np.concatenate([vectors_of(i, min(FRAGMENT, len(index))) for i in parts])
    result["rows"] = measure(index, vectors)
    kept = recall.share(recall.measure(model, index.table), CANDIDATES, len(index))
    result["recall of the full ranking"] = kept
    print(json.dumps(result, indent=2, default=float))
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())

"""Searches an index: stage one by one vector a clip, stage two by the full score."""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import lancedb
import numpy as np
import pyarrow as pa

from data.errors import DataError, UsageError
from data.records import Segment
from data.storage import listing
from data.storage.path import PathLike
from hvp_jax.models.similarity import TextFeatures, sentence_vector
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search import manifest, recall, scoring, vector_index
from hvp_jax.search import table as clips

K, CANDIDATES = 10, 200
BLOCK = 256  # clips that are scored in full at a time
REFRESH = 5.0  # seconds after which a search looks for clips that were added


@dataclasses.dataclass(frozen=True)
class Hit:
    """A clip that was found; `path` is inside the indexed folder, `captions` a line each."""

    id: str
    path: str
    start: float | None  # seconds; None: the whole video
    end: float | None
    duration: float  # of the whole video, in seconds
    score: float
    captions: str


class Index:
    """An index and its model. `open` makes one; threads may share it."""

    def __init__(self, uri: PathLike, retriever: Retriever):
        """Raises UsageError if the index is of another model, or has no clips yet."""
        self.uri, self.retriever = os.fspath(uri), retriever
        self._read()

    @classmethod
    def open(cls, uri: PathLike, weights: PathLike | None = None) -> "Index":
        """The index at `uri` with the model that it was made with, loaded from `weights` if given.

        Raises UsageError if there is no index, or if the weights are another model's.
        """
        found = manifest.require(uri)
        _require_clips(uri, clips.find_table(uri))
        if weights is None:
            try:
                retriever = Retriever.load(found.weights)
            except UsageError as error:
                raise UsageError(
                    f"the model of {uri} cannot be loaded, give it as --weights: {error}"
                ) from None
        else:
            retriever = Retriever.load(weights)
        return cls(uri, retriever)

    def _read(self) -> None:
        self.manifest = manifest.require(self.uri)
        manifest.require_model(
            self.uri, self.manifest, self.retriever.fingerprint, self.retriever.weights
        )
        self._table = _require_clips(self.uri, clips.find_table(self.uri))
        self._read_at = time.monotonic()

    @property
    def table(self) -> lancedb.table.Table:
        """The clips as of now, or a few seconds ago; what is committed later does not change it."""
        if time.monotonic() - self._read_at > REFRESH:
            self._read()
        return self._table

    def __len__(self) -> int:
        """The number of clips."""
        return self.table.count_rows()

    def recall(self, candidates: int = CANDIDATES, exact: bool = False) -> dict[str, Any] | None:
        """What share of the full ranking's ten best a search keeps, see `recall.share`."""
        clips_now = len(self)
        if exact or not {"tokens", "vector"} <= set(self.table.schema.names):
            return recall.of_everything(clips_now)
        return recall.share(self.manifest.recall, candidates, clips_now)

    def search(
        self,
        texts: Sequence[str],
        *,
        k: int = K,
        candidates: int = CANDIDATES,
        where: str = "",
        exact: bool = False,
    ) -> list[list[Hit]]:
        """The best `k` clips for each text, best first, of those that the SQL in `where` selects.

        The best `candidates` of stage one are scored in full; with `exact`, all clips are.
        Raises UsageError if a text is empty or too long, or `where` is wrong.
        """
        for text in texts:
            self.retriever.check_query(text)
        features, table = self.retriever.encode_texts(texts), self.table
        names = table.schema.names
        if exact or "vector" not in names:
            return self._search_all(table, features, k, where)
        found = []
        for i in range(len(texts)):
            of_text = jax.tree.map(lambda x, i=i: x[i : i + 1], features)
            count = max(k, candidates) if "tokens" in names else k
            query = table.search(of_text.sentence[0])
            if "tokens" in names:
                rows = _nearest(query, "dot", count, where, columns=())
                found.append(self._score(table, of_text, rows, k))
            else:
                rows = _nearest(query, "dot", count, where)
                found.append(_hits(rows, 1 - rows["_distance"].to_numpy(), k))
        return found

    def _score(
        self, table: lancedb.table.Table, text: TextFeatures, rows: pa.Table, k: int
    ) -> list[Hit]:
        """The best of some rows by their full score."""
        ids = rows["_rowid"].to_pylist()
        if not ids:
            return []
        columns = [*clips.feature_columns(table.schema), "_rowid"]
        full = table.take_row_ids(ids).select(columns).to_arrow()
        scores = scoring.score(text, clips.to_features(full), self.retriever.model.dtype)[0]
        best = np.argsort(-scores, kind="stable")[:k]
        of_id = dict(zip(full["_rowid"].to_numpy()[best].tolist(), scores[best], strict=True))
        meta = table.take_row_ids(list(of_id)).select([*clips.META, "_rowid"]).to_arrow()
        return _hits(meta, np.array([of_id[i] for i in meta["_rowid"].to_pylist()]), k)

    def _search_all(
        self, table: lancedb.table.Table, text: TextFeatures, k: int, where: str
    ) -> list[list[Hit]]:
        columns = [*clips.META, *clips.feature_columns(table.schema)]
        found: list[list[Hit]] = [[] for _ in jax.tree.leaves(text)[0]]
        query = table.search()
        if where:
            query = query.where(where)
            with clips.explained(where):
                table.search().where(where).select(["id"]).limit(1).to_arrow()
        for block in query.select(columns).to_batches(BLOCK):
            if not block.num_rows:
                continue
            scores = scoring.score(text, clips.to_features(block), self.retriever.model.dtype)
            for i, row in enumerate(scores):
                best = found[i] + _hits(block, row, k)
                found[i] = sorted(best, key=lambda hit: -hit.score)[:k]
        return found

    def search_by_video(
        self, video: PathLike | Segment, *, k: int = K, where: str = ""
    ) -> list[Hit]:
        """The best `k` clips by the cosine of their vectors with that of a video.

        Raises DataError, which names the file, if it cannot be read.
        """
        self._require_vectors()
        features = self.retriever.encode_videos([video])
        return self._by_cosine(np.asarray(sentence_vector(features))[0], k, where)

    def similar(self, clip_id: str, *, k: int = K, where: str = "") -> list[Hit]:
        """The best `k` other clips by the cosine of their vectors with that of a clip.

        Stretches of the same video that have a part of the clip in them are left out.
        """
        self._require_vectors()
        row = self._row(clip_id, ["path", "start", "end", "vector"])
        others = f"path != {clips.quoted(row['path'])}"
        if row["start"] is not None:
            others = f"({others} OR start >= {row['end']} OR end <= {row['start']})"
        where = f"({where}) AND {others}" if where else others
        return self._by_cosine(np.array(row["vector"], np.float32), k, where)

    def _by_cosine(self, vector: np.ndarray, k: int, where: str) -> list[Hit]:
        rows = _nearest(self.table.search(vector), "cosine", k, where)
        return _hits(rows, 1 - rows["_distance"].to_numpy(), k)

    def segment(self, clip_id: str) -> Segment:
        """Where a clip is: the path of its file and its stretch.

        Raises DataError if there is no such clip, or its file is gone.
        """
        row = self._row(clip_id, ["path", "start", "end"])
        path = self.path_of(row["path"])
        if not listing.is_file(path):
            raise DataError(f"{path} is gone since it was indexed; run `index` again")
        return Segment(path, row["start"], row["end"])

    def path_of(self, name: str) -> str:
        """The path of a video of the index, which may be gone."""
        return os.path.join(self.manifest.root, name)

    def _row(self, clip_id: str, columns: list[str]) -> dict[str, Any]:
        query = self.table.search().where(f"id = {clips.quoted(clip_id)}").limit(1)
        rows = query.select(columns).to_arrow().to_pylist()
        if not rows:
            raise DataError(f"{self.uri} has no clip {clip_id!r}")
        return rows[0]

    def _require_vectors(self) -> None:
        if "vector" not in self.table.schema.names:
            raise UsageError(
                f"the model of {self.uri} compares words and patches only, so two videos cannot be "
                "compared"
            )


def _require_clips(uri: PathLike, table: lancedb.table.Table | None) -> lancedb.table.Table:
    if table is None or not table.count_rows():
        raise UsageError(f"{uri} has no clips yet: run the same `index` again to finish it")
    return table


def _nearest(
    query: Any, metric: str, count: int, where: str, *, columns: Sequence[str] = clips.META
) -> pa.Table:
    """The rows that are nearest to the vector of a query, with their ids in the table."""
    query = query.distance_type(metric).limit(count).with_row_id(True)
    if metric == "cosine":  # an index of the vectors is one of dot products
        query = query.bypass_vector_index()
    else:
        query = query.nprobes(vector_index.PARTITIONS)
    query = query.select([*columns, "_distance"])
    with clips.explained(where):
        return (query.where(where) if where else query).to_arrow()


def _hits(rows: pa.Table | pa.RecordBatch, scores: np.ndarray, k: int) -> list[Hit]:
    """The best `k` of some rows."""
    best = np.argsort(-scores, kind="stable")[:k]
    meta = rows.select(clips.META).take(pa.array(best)).to_pylist()
    return [Hit(**row, score=float(scores[i])) for row, i in zip(meta, best, strict=True)]

"""The table of clips, in Lance's format: what its columns are, and how features become rows.

A full score needs the sum of the terms of the sentence, which is one vector, and the tokens. The
features that are read back have the vector in the place of the frames' sum at the first tap.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data.errors import UsageError
from data.storage.path import PathLike
from hvp_jax.evaluation import scorer
from hvp_jax.models.similarity import VideoFeatures, sentence_vector
from hvp_jax.retrieval.batching import pad_patches, video_batch
from hvp_jax.retrieval.retriever import Retriever
from hvp_jax.search.scoring import StoredFeatures
from hvp_jax.search.tokens import KINDS, quantize

try:
    import lance
    import lancedb
    import pyarrow as pa
except ImportError:
    raise UsageError("an index needs `pip install -r requirements-search.txt`") from None

NAME = "clips"
META = ("id", "path", "start", "end", "duration", "captions")  # what a hit consists of
FEATURES = ("vector", "tokens", "token_scale", "token_weights", "tap_weights")


class Row(NamedTuple):
    """What the table says of a clip beside its features."""

    id: str
    path: str  # inside the indexed folder
    start: float | None  # seconds; None: all of the video
    end: float | None
    duration: float  # of the video
    version: str  # of the file
    captions: str  # a line each


def storage_options(uri: PathLike) -> dict[str, str] | None:
    """What Lance needs to know of a bucket beside the environment."""
    if not os.fspath(uri).startswith("s3://"):
        return None
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if not endpoint.startswith("http://"):
        return None
    return {"aws_endpoint": endpoint, "allow_http": "true"}


def dataset_uri(uri: PathLike) -> str:
    """Where the table of an index is."""
    return os.path.join(uri, f"{NAME}.lance")


def open_dataset(uri: PathLike) -> lance.LanceDataset:
    """The table of an index, for writing. Raises ValueError if there is none."""
    return lance.dataset(dataset_uri(uri), storage_options=storage_options(uri))


def find_table(uri: PathLike) -> lancedb.table.Table | None:
    """The table of an index as it is now, for queries; None if there is none yet."""
    database = lancedb.connect(os.fspath(uri), storage_options=storage_options(uri))
    try:
        return database.open_table(NAME)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None


def create(uri: PathLike, columns: pa.Schema) -> None:
    """Makes an empty table, unless another process has made it."""
    try:
        lance.write_dataset(
            columns.empty_table(),
            dataset_uri(uri),
            mode="create",
            storage_options=storage_options(uri),
        )
    except OSError as error:
        if "already exists" not in str(error):
            raise


@contextlib.contextmanager
def writing(uri: PathLike) -> Iterator[None]:
    """Turns an OSError, of Lance or of the disk, into a UsageError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:300]
        raise UsageError(f"cannot write --index={uri}: {reason}") from None


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turns what Lance says of a wrong condition of a user into a UsageError."""
    try:
        yield
    except ValueError as error:
        if not where:
            raise
        reason = " ".join(str(error).removeprefix("Invalid input, ").split())
        raise UsageError(f"--where={where} is no condition on the clips: {reason}") from None


def schema(retriever: Retriever, kind: str) -> pa.Schema:
    """The columns of a table with the features of a model and tokens of `kind`."""
    return columns_of(_shapes(retriever), kind)


def columns_of(features: VideoFeatures, kind: str) -> pa.Schema:
    """The columns for features of these shapes."""
    columns = [
        *(pa.field(name, pa.string()) for name in ("id", "path")),
        *(pa.field(name, pa.float64()) for name in ("start", "end", "duration")),
        *(pa.field(name, pa.string()) for name in ("version", "captions")),
    ]
    sizes: dict[str, tuple[pa.DataType, int]] = {}
    vector = jax.eval_shape(sentence_vector, features)
    if vector is not None:
        sizes["vector"] = pa.float32(), vector.shape[1]
    shape: tuple[int, ...] = (1, 0, vector.shape[1] if vector is not None else 0)
    if features.patches is not None:
        shape = features.patches.shape[1:]
        taps, count, dim = shape
        sizes["tokens"] = pa.from_numpy_dtype(KINDS[kind]), taps * count * dim
        sizes["token_scale"] = sizes["token_weights"] = pa.float32(), taps * count
        if features.tap_weights is not None:
            sizes["tap_weights"] = pa.float32(), taps
    columns += [pa.field(name, pa.list_(value, size)) for name, (value, size) in sizes.items()]
    return pa.schema(columns, {"taps, tokens, dim": ", ".join(map(str, shape)), "tokens": kind})


def _shapes(retriever: Retriever) -> VideoFeatures:
    """The shapes of the features of a clip of as many frames as there can be."""
    size, count = retriever.image_size, retriever.max_frames
    batch = video_batch([np.zeros((count, size, size, 3), np.uint8)], count)

    def encode(params, batch):
        return scorer.encode_video(params, (batch, None), retriever.model)

    return jax.eval_shape(encode, retriever.params, batch)


def to_arrow(rows: Sequence[Row], features: VideoFeatures, columns: pa.Schema) -> pa.Table:
    """Clips as rows of a table with these columns."""
    arrays = dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True))
    _, count, _ = _layout(columns)
    values: dict[str, np.ndarray] = {}
    vector = sentence_vector(features)
    if vector is not None:
        values["vector"] = np.asarray(vector, np.float32)
    if features.patches is not None:
        # Clips of few frames may have fewer tokens than others.
        features = pad_patches(features, count)
        patches = np.asarray(features.patches, np.float32)
        integers, scale = quantize(patches, columns.metadata[b"tokens"].decode())
        values |= {"tokens": integers, "token_scale": scale}
        values["token_weights"] = np.asarray(features.patch_weights, np.float32)
        if features.tap_weights is not None:
            values["tap_weights"] = np.asarray(features.tap_weights)[:, 0]  # of word-patch
    for name, array in values.items():
        field = columns.field(name).type
        flat = pa.array(np.ascontiguousarray(array).reshape(-1), field.value_type)
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, field.list_size)
    return pa.table([arrays[name] for name in columns.names], schema=columns)


def to_features(table: pa.Table | pa.RecordBatch) -> StoredFeatures:
    """The features of rows with the columns of `FEATURES` that there are.

    The score of a text and these features is that of the clip's own features, to rounding.
    """
    taps, count, dim = _layout(table.schema)
    clips = table.num_rows
    tokens: Any = None
    scale: Any = None
    weights: Any = None
    frame_sum: Any = None
    tap_weights: Any = None
    if "tokens" in table.schema.names:
        scale = _numpy(table, "token_scale").reshape(clips, taps, count)
        tokens = _numpy(table, "tokens").reshape(clips, taps, count, dim)
        weights = _numpy(table, "token_weights").reshape(clips, taps, count)
    if "vector" in table.schema.names:
        frame_sum = np.zeros((clips, taps, dim), np.float32)
        frame_sum[:, 0] = _numpy(table, "vector")
    if "tap_weights" in table.schema.names:
        of_words = _numpy(table, "tap_weights")
        ones = [np.ones_like(of_words)] if frame_sum is not None else []
        tap_weights = np.stack([of_words, *ones], axis=1)
    features = VideoFeatures(patch_weights=weights, frame_sum=frame_sum, tap_weights=tap_weights)
    return StoredFeatures(tokens, scale, features)


def feature_columns(columns: pa.Schema) -> list[str]:
    """The columns that `to_features` needs."""
    return [name for name in FEATURES if name in columns.names]


def _layout(columns: pa.Schema) -> tuple[int, int, int]:
    """The numbers of taps, of tokens at each of them, and of their components."""
    taps, tokens, dim = map(int, columns.metadata[b"taps, tokens, dim"].split(b", "))
    return taps, tokens, dim


def _numpy(table: pa.Table | pa.RecordBatch, name: str) -> np.ndarray:
    """[rows, size]: the values of a column of lists."""
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, -1)

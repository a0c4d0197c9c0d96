"""The index of the vectors of a large table, with which stage one is fast.

It keeps each component in 8 bits. Fewer bits lose clips that are among the best, and all its
partitions are searched, as vectors that form no groups need it.
"""

from lancedb.index import IvfRq

from data.storage.path import PathLike
from hvp_jax.search import table as clips

# From so many clips on there is an index: below, all are compared in less than 50 ms.
MIN_ROWS = 100_000
BITS = 8
PARTITION_ROWS = 4096
PARTITIONS = 256  # at most
KMEANS_SAMPLE, KMEANS_ITERATIONS = 64, 10  # rows of each partition; all are searched anyway


def ensure(uri: PathLike) -> None:
    """Makes an index of the vectors of a large table, or adds new rows to the one that it has."""
    table = clips.find_table(uri)
    if table is None or "vector" not in table.schema.names:
        return
    if table.list_indices():
        clips.open_dataset(uri).optimize.optimize_indices()
    elif table.count_rows() >= MIN_ROWS:
        config = IvfRq(
            distance_type="dot",
            num_partitions=min(table.count_rows() // PARTITION_ROWS, PARTITIONS),
            num_bits=BITS,
            sample_rate=KMEANS_SAMPLE,
            max_iterations=KMEANS_ITERATIONS,
        )
        table.create_index("vector", config=config)

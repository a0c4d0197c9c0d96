"""The index of the vectors of a large table, with which stage one is fast.

It keeps each component in 4 bits, which reorders neighbours but keeps the best among the
candidates; 1 bit loses them. All its partitions are searched, as vectors that form no groups
need it.
"""

from lancedb.index import IvfRq

from data.storage.path import PathLike
from hvp_jax.search import table as clips

# From so many clips on there is an index: below, all are compared in less than 50 ms.
MIN_ROWS = 100_000
BITS = 4
# Few partitions: each has a list of its best to be merged, which takes half of the time with 256.
PARTITION_ROWS = 32768
PARTITIONS = 32  # at most
KMEANS_ITERATIONS = 10  # all partitions are searched anyway


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
            num_partitions=min(-(-table.count_rows() // PARTITION_ROWS), PARTITIONS),
            num_bits=BITS,
            max_iterations=KMEANS_ITERATIONS,
        )
        table.create_index("vector", config=config)

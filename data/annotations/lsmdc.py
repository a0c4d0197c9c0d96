"""LSMDC: clips of films, one sentence each, a folder a film.

Its tables are tab separated without header: the clip's name, four moments in the film and
the sentence. The files are cut already, so the moments play no part.
"""

from data.annotations import common
from data.errors import DataError
from data.records import Annotations

FIELDS = 6
TABLES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),
}


def read(annotations: str, videos: str, protocol: str) -> Annotations:
    """The clips of the three tables. Raises DataError for bad files."""
    del protocol  # there is but one
    splits = {}
    for split, names in TABLES.items():
        captions = _read_table(common.find_annotation_file(annotations, *names))
        splits[split] = (captions, captions)
    paths = common.index_videos(videos)
    return common.build_clips(
        annotations, splits, lambda clip_id: common.match_video(paths, clip_id)
    )


def _read_table(path: str) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in common.read_lines(path):
        fields = line.split("\t", FIELDS - 1)
        if len(fields) == FIELDS - 1:
            raise DataError(
                f"{path}: line {number} has 5 fields and no sentence, as the blind test file;"
                f" the test file is {TABLES['test'][0]}"
            )
        if len(fields) != FIELDS:
            raise DataError(
                f"{path}: line {number} has {len(fields)} fields; it needs 6, separated by tabs"
            )
        captions.setdefault(fields[0].strip(), []).append(common.clean(fields[-1]))
    return captions

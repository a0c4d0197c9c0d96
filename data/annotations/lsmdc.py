"""LSMDC: clips of films, one sentence each, one folder per film.

Its tables are tab separated without a header: the clip's name, four times in the film and the
sentence. The files are already cut, so the times are ignored.
"""

from data.annotations import common, files
from data.errors import DataError
from data.records import Annotations, DatasetLocation

FIELDS = 6
TABLES = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),
}


def read(location: DatasetLocation) -> Annotations:
    """The clips of the three tables. Raises DataError for bad files."""
    splits = {}
    for split, names in TABLES.items():
        captions = _read_table(files.find_annotation_file(location.annotations, *names))
        splits[split] = (captions, captions)
    paths = common.index_videos(location.videos)
    return common.build_clips(
        location.annotations, splits, lambda clip_id: common.match_video(paths, clip_id)
    )


def _read_table(path: str) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in files.read_lines(path):
        fields = line.split("\t", FIELDS - 1)
        if len(fields) == FIELDS - 1:
            raise DataError(
                f"{path}: line {number} has 5 fields and no sentence, like the blind test file;"
                f" the test file is {TABLES['test'][0]}"
            )
        if len(fields) != FIELDS:
            raise DataError(
                f"{path}: line {number} has {len(fields)} fields; it needs 6, separated by tabs"
            )
        captions.setdefault(fields[0].strip(), []).append(common.clean(fields[-1]))
    return captions

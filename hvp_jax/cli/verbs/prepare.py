"""The verb `prepare`: decodes the videos of a data set into shards at the model's frame size."""

import dataclasses

from ml_collections import ConfigDict
from tqdm import tqdm

from data.errors import UsageError
from data.inputs import read_clips
from data.shards import prepare
from hvp_jax.weights import initial


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    directory: str
    splits: dict[str, int]  # number of clips
    bytes: int
    written: bool  # False: the shards were complete already

    @property
    def text(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        action = "wrote" if self.written else "found"
        return f"{action} {counts} clips in {self.directory}, {self.bytes / 2**20:.0f} MiB"


def run(config: ConfigDict) -> PrepareResult:
    """Writes shards to `data.shards`, unless they are complete already."""
    if not config.data.shards:
        raise UsageError(
            "data.shards is empty; set the output folder with --config.data.shards=DIR"
        )
    clips = read_clips(config)
    size = initial.find_initial_weights(config).spec.clip_config.image_size
    with tqdm(total=len(clips), desc="prepare", unit="clip") as bar:

        def progress(done: int, total: int) -> None:
            del total
            bar.update(done - bar.n)

        data = config.data
        result = prepare.prepare(
            clips,
            data.shards,
            size,
            data.max_frames,
            progress=progress,
            workers=data.workers,
            beam_options=data.beam_options,
        )
    return PrepareResult(**result)

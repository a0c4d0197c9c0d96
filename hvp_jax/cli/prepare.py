"""The verb `prepare`: the video files of a data set -> shards for this model's pictures."""

from ml_collections import ConfigDict
from tqdm import tqdm

from data.errors import UsageError
from data.inputs import read_clips
from data.shards import prepare
from hvp_jax.weights import initial


def run(config: ConfigDict) -> dict:
    """Writes shards to `data.shards`, or finds them there whole already."""
    if not config.data.shards:
        raise UsageError("data.shards is empty; say where to write with --config.data.shards=DIR")
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
    counts = ", ".join(f"{count} {split}" for split, count in result["splits"].items())
    verb = "wrote" if result["written"] else "found"
    text = f"{verb} {counts} clips in {result['directory']}, {result['bytes'] / 2**20:.0f} MiB"
    return result | {"text": text}

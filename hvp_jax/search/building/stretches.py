"""How a long video is cut into stretches, each of which is a clip of the index."""

from data.errors import DataError
from data.records import Segment

LEAST = 1.25  # a video that is longer than so many stretches is cut
MOST = 10_000  # stretches of a video: half a week of stretches of a minute


def cut(path: str, duration: float, seconds: float) -> list[Segment]:
    """The stretches of a video of `duration` seconds, each `seconds` long, or all of it.

    Two neighbours have about half of their length in common, and the last one ends with the video.
    Raises DataError if the file claims to be too long to be true.
    """
    if duration <= LEAST * seconds:
        return [Segment(path)]
    if duration > MOST * seconds / 2:
        raise DataError(f"{path}: it claims to be {duration / 3600:.0f} hours long")
    step, starts = seconds / 2, [0.0]
    # One that would end shortly before the video is left out for the last one.
    while starts[-1] + step + seconds <= duration - step / 2:
        starts.append(starts[-1] + step)
    stretches = [Segment(path, start, start + seconds) for start in starts]
    return [*stretches, Segment(path, round(duration - seconds, 3), round(duration, 3))]


def clip_id(name: str, segment: Segment) -> str:
    """The id of a clip: the name of its video, and for a stretch its start and end."""
    if segment.start is None or segment.end is None:
        return name
    return f"{name}@{segment.start:.12g}-{segment.end:.12g}"

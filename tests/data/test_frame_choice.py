"""Which frames of a clip are taken, by rule and from real files."""

import numpy as np
import pytest

from configs.base import get_config
from data import inputs
from data.batches import frame_sources, pipeline
from data.errors import UsageError
from data.records import Clip
from data.video.decode import read_frames
from data.video.frame_choice import head, random_in_segment, uniform
from data.video.timeline import frame_positions
from hvp_jax.config.resolve import resolve
from hvp_jax.config.validate import validate
from tests.helpers.clips import numbered, numbers, write_video


def test_head_takes_the_first_frames_at_the_rate_of_uniform():
    assert frame_positions(300, 10, 4) == frame_positions(300, 10, 4, choice=uniform)
    assert frame_positions(300, 10, 4) == [0, 90, 190, 290]
    assert frame_positions(300, 10, 4, choice=head) == [0, 10, 20, 30]
    assert frame_positions(300, 10, 4, start=2.0, end=20.0, choice=head) == [20, 30, 40, 50]
    assert frame_positions(25, 10, 4, choice=head) == frame_positions(25, 10, 4) == [0, 10, 20]


def test_random_frames_are_one_of_each_segment():
    seen: list[set[int]] = [set() for _ in range(4)]
    for seed in range(300):
        choice = random_in_segment(np.random.default_rng(seed))
        chosen = frame_positions(40, 10, 4, choice=choice)
        for segment, position in zip(seen, chosen, strict=True):
            segment.add(position)
    assert seen == [set(range(10 * i, 10 * i + 10)) for i in range(4)]


@pytest.mark.parametrize("frames", [1, 3, 10, 17, 100, 1001])
@pytest.mark.parametrize("fps", [1, 7, 25])
def test_every_rule_takes_as_many_frames_as_uniform(frames, fps):
    """So that clips are padded alike."""
    for seconds in ({}, {"start": 1.5, "end": 9.0}):
        expected = frame_positions(frames, fps, 6, **seconds)
        rules = (head, random_in_segment(np.random.default_rng(frames)))
        for chosen in (frame_positions(frames, fps, 6, choice=rule, **seconds) for rule in rules):
            assert len(chosen) == len(expected) == len(set(chosen))
            assert chosen == sorted(chosen) and 0 <= chosen[0] and chosen[-1] < frames


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    """Four clips of 60 frames, whose frames show their number, at 5 a second."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for i in range(4):
        path = folder / f"{i}.mp4"
        write_video(path, numbered(60), rate=5)
        made.append(Clip(f"id{i}", str(path), (f"text {i}",), "train"))
    return made


def test_files_are_read_by_the_rule(clips):
    path = clips[0].path
    assert numbers(read_frames(path, 32, 3)) == [0, 25, 55]
    assert numbers(read_frames(path, 32, 3, choice=head)) == [0, 5, 10]
    source = frame_sources.open_frames(clips, 32, 3, choice=head)
    assert numbers(source["id2"]) == [0, 5, 10]


def config_of(choice: str):
    config = get_config()
    config.model.variant = "tiny"
    config.train.batch_size, config.data.max_frames, config.data.workers = 2, 3, 0
    config.data.frame_choice = choice
    return resolve(config)


def test_training_has_random_frames_and_evaluation_has_not(clips):
    config = config_of("random_in_segment")
    source = inputs.open_frame_source(config, 32, clips)
    assert numbers(source["id1"]) == [0, 25, 55]

    def frames(host=(0, 1), count=8):
        run = inputs.batches(config, clips, source, 3, process_index=host[0], process_count=host[1])
        return [numbers(video) for _ in range(count) for video in next(run).video]

    epochs = frames()
    assert all(0 <= a < 20 <= b < 40 <= c < 60 for a, b, c in epochs)
    assert len({tuple(x) for x in epochs}) > 12  # of 16 examples, four times each clip
    assert frames() == epochs  # of the seed and the position alone
    halves = [frames((i, 2)) for i in range(2)]
    assert [x for pair in zip(*halves, strict=True) for x in pair] == epochs
    config.seed += 1
    assert frames() != epochs


def test_uniform_training_reads_its_source(clips):
    config = config_of("uniform")
    source = inputs.open_frame_source(config, 32, clips)
    run = inputs.batches(config, clips, source, 3, process_index=0, process_count=1)
    assert {tuple(numbers(video)) for _ in range(4) for video in next(run).video} == {(0, 25, 55)}
    assert isinstance(source, frame_sources.MemoryFrames)
    assert not isinstance(source, frame_sources.RandomFrames)


def test_random_frames_are_those_of_worker_processes_too(clips):
    source = frame_sources.RandomFrames(clips, 32, 3, seed=5)
    numbered = pipeline.numbered_batches(clips, source, 3, 7, batch_size=2, seed=5)
    expected = [numbers(video) for i in range(4) for video in numbered[i].video]
    run = pipeline.train_batches(numbered, 2)
    assert [numbers(video) for _ in range(4) for video in next(run).video] == expected
    run.close()


@pytest.mark.parametrize("choice", ["head", "random_in_segment"])
def test_shards_have_uniform_frames_only(choice):
    config = config_of(choice)
    config.data.shards = "shards"
    with pytest.raises(UsageError, match=f"frame_choice={choice} .* config.data.shards has"):
        validate(config)
    config.data.frame_choice = "uniform"
    validate(config)

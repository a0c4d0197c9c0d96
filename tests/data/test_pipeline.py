"""The pipeline: order of the batches, resuming, hosts, worker processes."""

import itertools
import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import av
import jaxtyping
import numpy as np
import pytest

from data.batches import eval_batches, frame_sources, pipeline
from data.batches.augment import Augment
from data.batches.batch import Batch
from data.errors import DataError, UsageError
from data.records import Clip
from data.shards import prepare
from data.tokenizer import tokenize
from tests.helpers.synthetic_frames import CLIPS, FRAMES, SIZE, WORDS, SyntheticFrames, pairs


def start(seed=42, batch_size=4, workers=0, host=(0, 1), clips=CLIPS, source=None):
    source = source or SyntheticFrames()
    numbered = pipeline.numbered_batches(
        clips,
        source,
        FRAMES,
        WORDS,
        batch_size=batch_size,
        seed=seed,
        host_index=host[0],
        host_count=host[1],
    )
    return pipeline.train_batches(numbered, workers)


def take(iterator, n: int) -> list[Batch]:
    return list(itertools.islice(iterator, n))


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b)
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=name)


def test_shapes_and_content_of_a_batch():
    batches = take(start(), 3)
    for batch in batches:
        assert {key: (value.dtype.name, value.shape) for key, value in batch._asdict().items()} == {
            "video": ("uint8", (4, FRAMES, SIZE, SIZE, 3)),
            "video_mask": ("bool", (4, FRAMES)),
            "text_ids": ("int32", (4, WORDS)),
            "text_mask": ("bool", (4, WORDS)),
        }
        for row, (clip, caption) in enumerate(pairs([batch])):
            assert caption in CLIPS[clip].captions
            valid = np.arange(FRAMES) < 1 + clip % FRAMES
            np.testing.assert_array_equal(batch.video_mask[row], valid)
            assert (batch.video[row][valid] == clip + 1).all()
            assert not batch.video[row][~valid].any()
            ids, mask = tokenize([caption], WORDS)
            np.testing.assert_array_equal(batch.text_mask[row], mask[0])


def test_an_epoch_contains_every_pair_once_in_a_new_order():
    epochs = [pairs(take(run, 3)) for run in [start()] for _ in range(3)]
    expected = sorted((i, caption) for i, clip in enumerate(CLIPS) for caption in clip.captions)
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert pairs(take(start(), 9)) == sum(epochs, [])
    others = [pairs(take(start(seed), 9)) for seed in (41, 43)]
    assert len({str(order[i : i + 12]) for order in others for i in (0, 12, 24)}) == 6
    assert not {str(order[i : i + 12]) for order in others for i in (0, 12, 24)} & {
        str(epoch) for epoch in epochs
    }


def test_the_remainder_differs_between_epochs():
    run = start(batch_size=5)
    epochs = [pairs(take(run, 2)) for _ in range(6)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("batch_size", [2, 4])  # with 4, an epoch has an odd number of batches: 3
def test_batches_of_all_hosts_are_those_of_a_single_host(batch_size):
    expected = take(start(batch_size=2 * batch_size), 8)
    parts = [take(start(batch_size=batch_size, host=(i, 2)), 8) for i in range(2)]
    joined = [
        Batch(*map(np.concatenate, zip(*batches, strict=True)))
        for batches in zip(*parts, strict=True)
    ]
    assert_same(joined, expected)
    epoch = 12 // (2 * batch_size)
    assert not set(pairs(parts[0][:epoch])) & set(pairs(parts[1][:epoch]))


@pytest.mark.parametrize("stop", [0, 2, 3, 7])
def test_resumes_at_the_next_batch(stop):
    run = start()
    take(run, stop)
    state = json.loads(json.dumps(run.get_state()))  # as checkpoints keep it
    after = take(run, 5)
    fresh = start()
    take(fresh, 1)
    fresh.set_state(state)
    assert_same(take(fresh, 5), after)
    run.set_state(state)
    assert_same(take(run, 5), after)


def test_transforms_can_be_pickled():
    """Grain sends them to its workers; here they are also decorated by the type checker."""
    read = pipeline.ReadVideos(
        source=SyntheticFrames(),
        clip_ids=["id0", "id4"],
        num_frames=FRAMES,
        batch_size=2,
        augment=Augment(7, flip=True),
    )
    restored = pickle.loads(pickle.dumps(read))
    assert_same([restored(np.arange(2), 5)], [read(np.arange(2), 5)])
    with pytest.raises(jaxtyping.TypeCheckError):
        read(np.zeros(2))  # indices are integers


def write_video(path: Path, colour: int, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = 48, 32
        for i in range(frames):
            pixels = np.full((32, 48, 3), colour + 9 * i, np.uint8)
            pixels[:, 20:30] = 255 - colour
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def video_clips(tmp_path_factory) -> list[Clip]:
    """Five clips of real files with two captions each, two of them in the split test."""
    folder = tmp_path_factory.mktemp("videos")
    made = []
    for i in range(5):
        write_video(folder / f"{i}.mp4", 20 * i + 10, 1 + i)
        captions = (f"clip {i} text 0", f"clip {i} text 1")
        split = "test" if i in (1, 4) else "train"
        made.append(Clip(f"id{i}", str(folder / f"{i}.mp4"), captions, split))
    return made


def test_workers_produce_the_same_batches_and_resume_exactly(video_clips):
    source = frame_sources.open_frames(video_clips, SIZE, FRAMES)
    expected = take(start(clips=video_clips, source=source), 9)
    run = start(clips=video_clips, source=source, workers=2)
    assert_same(take(run, 3), expected[:3])
    state = json.loads(json.dumps(run.get_state()))  # as checkpoints keep it
    assert_same(take(run, 2), expected[3:5])
    run.set_state(state)
    assert_same(take(run, 4), expected[3:7])
    run.close()
    fresh = start(clips=video_clips, source=source, workers=2)
    fresh.set_state(state)
    assert_same(take(fresh, 6), expected[3:])
    fresh.close()


def test_workers_ignore_ctrl_c_and_end_with_their_iterator(video_clips):
    source = frame_sources.open_frames(video_clips, SIZE, FRAMES)
    expected = take(start(clips=video_clips, source=source), 16)
    run = start(clips=video_clips, source=source, workers=2)
    first = take(run, 2)  # one from each worker
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    assert_same(first + take(run, 14), expected)  # far more than was read ahead
    run.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV])
def test_error_if_a_worker_dies(end):
    run = start(workers=2)
    take(run, 2)
    worker = multiprocessing.active_children()[0]
    os.kill(worker.pid, end)
    with pytest.raises(DataError, match=rf"a worker process .* \({end.name}\).*: the same command"):
        take(run, 16)  # far more than was read ahead
    run.close()
    assert not multiprocessing.active_children()


class FailingFrames(SyntheticFrames):
    def __getitem__(self, clip_id: str) -> np.ndarray:
        raise RuntimeError("a bug")


def test_an_exception_in_a_worker_is_not_reported_as_its_death():
    run = start(workers=1, source=FailingFrames())
    with pytest.raises(RuntimeError, match="a bug"):
        next(run)
    run.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_error_names_the_clip_that_cannot_be_read(video_clips, workers, tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    clips = [*video_clips, Clip("broken", str(path), ("text",), "train")]
    source = frame_sources.FileFrames(clips, SIZE, FRAMES)
    run = start(clips=clips, source=source, batch_size=11, workers=workers)
    with pytest.raises(DataError, match=r"clip broken: .*text\.mp4"):
        next(run)
    run.close()
    with pytest.raises(DataError, match=r"clip broken: .*text\.mp4"):
        list(eval_batches.eval_videos(clips, source, FRAMES, 4))


def test_a_small_data_set_is_decoded_once_and_broken_clips_are_found_then(video_clips, tmp_path):
    memory = frame_sources.open_frames(video_clips, SIZE, FRAMES)
    files = frame_sources.FileFrames(video_clips, SIZE, FRAMES)
    assert isinstance(memory, frame_sources.MemoryFrames)
    assert memory.longest == max(len(files[clip.clip_id]) for clip in video_clips)
    for clip in video_clips:
        assert memory[clip.clip_id] is memory[clip.clip_id]
        np.testing.assert_array_equal(memory[clip.clip_id], files[clip.clip_id])
    (tmp_path / "text.mp4").write_text("not a video")
    broken = Clip("broken", str(tmp_path / "text.mp4"), ("text",), "train")
    with pytest.raises(DataError, match=r"clip broken: .*text\.mp4"):
        frame_sources.open_frames([*video_clips, broken], SIZE, FRAMES)


def test_shards_and_files_give_the_same_batches(video_clips, tmp_path):
    prepare.prepare(video_clips, str(tmp_path), SIZE, FRAMES)
    files = frame_sources.FileFrames(video_clips, SIZE, FRAMES)
    shards = frame_sources.open_frames(video_clips, SIZE, FRAMES, str(tmp_path))
    assert isinstance(shards, frame_sources.ShardFrames)
    runs = [take(start(clips=video_clips, source=source), 6) for source in (files, shards)]
    assert runs[0][0].video.any()
    assert_same(*runs)
    runs = [
        list(eval_batches.eval_videos(video_clips, source, FRAMES, 2)) for source in (files, shards)
    ]
    assert_same(*[[batch for batch, _ in run] for run in runs])


def test_shards_of_other_clips_or_sizes_are_refused(video_clips, tmp_path):
    prepare.prepare(video_clips[:4], str(tmp_path), SIZE, FRAMES)
    for size, frames in ((SIZE + 1, FRAMES), (SIZE, FRAMES + 1)):
        with pytest.raises(UsageError, match=f"3 frames of 8 px.* {frames} of {size} px"):
            frame_sources.open_frames(video_clips[:4], size, frames, str(tmp_path))
    with pytest.raises(DataError, match="lacks 1 of 5 clips, such as id4"):
        frame_sources.open_frames(video_clips, SIZE, FRAMES, str(tmp_path))


def test_too_few_pairs_and_an_invalid_seed_are_refused():
    with pytest.raises(DataError, match="12 pairs .* batch of 13"):
        start(batch_size=13)
    with pytest.raises(DataError, match="12 pairs .* batch of 14"):
        start(batch_size=7, host=(1, 2))
    with pytest.raises(UsageError, match="seed"):
        start(seed=-1)

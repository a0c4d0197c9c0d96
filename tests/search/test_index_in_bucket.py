"""Videos and their index in s3://."""

import pytest

from hvp_jax.search.building.build import build
from hvp_jax.search.query import Index
from tests.helpers.bucket import emulated_s3
from tests.helpers.search_clips import write_clip


@pytest.fixture(scope="module")
def bucket():
    import s3fs

    with emulated_s3():
        yield s3fs.S3FileSystem()


def test_an_index_in_a_bucket_is_made_searched_and_brought_up_to_date(bucket, retriever, tmp_path):
    for seed in range(3):
        write_clip(tmp_path / f"{seed}.mp4", seed)
        bucket.put_file(str(tmp_path / f"{seed}.mp4"), f"s3://bucket/videos/sub/{seed}.mp4")
    write_clip(tmp_path / "long.mp4", 9, seconds=30)
    bucket.put_file(str(tmp_path / "long.mp4"), "s3://bucket/videos/long.mp4")
    bucket.pipe_file("s3://bucket/videos/0.mp4", b"no video")
    bucket.pipe_file("s3://bucket/videos/sub/1.txt", b"a caption")
    videos, uri = "s3://bucket/videos", "s3://bucket/index"
    result = build(retriever, videos, uri, segment_seconds=20)
    assert (result.added, result.clips) == (4, 5) and list(result.skipped) == ["0.mp4"]
    (hits,) = Index(uri, retriever).search(["a dog"], k=5)
    captions = {hit.id: hit.captions for hit in hits}
    assert captions["sub/1.mp4"] == "a caption" and "long.mp4@10-30" in captions
    index = Index(uri, retriever)
    assert index.segment("long.mp4@10-30").path == "s3://bucket/videos/long.mp4"
    bucket.rm_file("s3://bucket/videos/sub/0.mp4")
    bucket.put_file(str(tmp_path / "0.mp4"), "s3://bucket/videos/sub/2.mp4")
    again = build(retriever, videos, uri, segment_seconds=20)
    assert (again.added, again.changed, again.removed, again.clips) == (0, 1, 1, 4)

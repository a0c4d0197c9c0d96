"""Videos of the index, and nothing else, with ranges; posters and previews of any file."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import numbered, write_video
from tests.helpers.fake_index import FakeIndex


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("media")
    root = base / "videos"
    write_video(root / "a/clip.mp4", numbered(40))
    write_video(root / "wide.avi", numbered(30, 128, 32), rate=10)
    write_video(root / "c.gif", numbered(12), "gif", "rgb8")
    (root / "page.html").write_bytes((root / "a/clip.mp4").read_bytes())
    (root / "broken.mp4").write_bytes(b"no video")
    write_video(base / "secret.mp4", numbered(4))
    (root / "link.mp4").symlink_to(base / "secret.mp4")
    (root / "linked").symlink_to(base)
    (root / "inside.mp4").symlink_to(root / "a/clip.mp4")
    return root


@pytest.fixture
def client(client_of, folder):
    ids = ("a/clip.mp4", "a/clip.mp4@1-3", "wide.avi", "c.gif", "page.html", "broken.mp4")
    links = ("link.mp4", "linked/secret.mp4", "../secret.mp4", "inside.mp4", "gone.mp4", "a")
    return client_of(FakeIndex(folder, *ids, *links))


def test_a_video_is_served_whole_and_by_ranges(client, folder):
    content = (folder / "a/clip.mp4").read_bytes()
    whole = client.get("/media/a/clip.mp4")
    assert whole.content == content
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (
        ("bytes=0-99", content[:100]),
        ("bytes=100-", content[100:]),
        ("bytes=-7", content[-7:]),
    ):
        answer = client.get("/media/a/clip.mp4@1-3", headers={"range": asked})
        assert answer.status_code == 206 and answer.content == part
    beyond = client.get("/media/a/clip.mp4", headers={"range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416


def test_a_file_that_is_no_video_by_its_name_is_never_shown_as_a_page(client):
    assert client.get("/media/page.html").headers["content-type"] == "application/octet-stream"
    assert client.get("/media/c.gif").headers["content-type"] == "image/gif"


@pytest.mark.parametrize("kind", ["media", "api/poster", "api/preview", "api/explain"])
@pytest.mark.parametrize(
    "clip_id",
    [
        "link.mp4",
        "linked/secret.mp4",
        "../secret.mp4",
        "gone.mp4",
        "a",
        "unlisted.mp4",
        "/etc/passwd",
        "a/../a/clip.mp4",
    ],
)
def test_nothing_else_is_served(client, kind, clip_id):
    if kind == "api/explain":
        answer = client.get("/api/explain", params={"q": "x", "id": clip_id})
    else:
        answer = client.get(f"/{kind}/{clip_id.replace('../', '%2E%2E%2F')}")
    assert answer.status_code == 404 and "error" in answer.json()


def test_links_inside_the_folder_are_served(client, folder):
    assert client.get("/media/inside.mp4").content == (folder / "a/clip.mp4").read_bytes()


def image_of(answer):
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
    return Image.open(io.BytesIO(answer.content))


def grey(image):
    return float(np.asarray(image.convert("L")).mean())


def test_a_poster_is_the_whole_frame_in_the_middle(client):
    poster = image_of(client.get("/api/poster/wide.avi"))
    assert poster.size == (128, 32)
    assert grey(poster) == pytest.approx(4 * 15, abs=3)  # frame 15 of 30
    stretch = image_of(client.get("/api/poster/a/clip.mp4@1-3"))
    assert grey(stretch) == pytest.approx(4 * 20, abs=3)


def played(image):
    """The mean grey level and the milliseconds of each frame of an animation."""
    frames = []
    for i in range(image.n_frames):  # equal frames are stored as one
        image.seek(i)
        image.load()
        frames.append((grey(image), image.info["duration"]))
    return frames


@pytest.mark.parametrize(
    ("clip_id", "first", "last", "seconds"),
    [("wide.avi", 0, 29, 3.0), ("c.gif", 0, 11, 1.2), ("a/clip.mp4@1-3", 10, 30, 2.0)],
)
def test_a_preview_shows_every_file_as_it_moves(client, clip_id, first, last, seconds):
    preview = image_of(client.get(f"/api/preview/{clip_id}"))
    assert preview.info["loop"] == 0  # for ever
    frames = played(preview)
    levels = [level for level, _ in frames]
    assert levels[0] == pytest.approx(4 * first, abs=8)
    assert levels[-1] == pytest.approx(4 * last, abs=8)
    assert levels == sorted(levels) and len(levels) > (last - first) / 3
    assert sum(duration for _, duration in frames) == pytest.approx(1000 * seconds, abs=20)


def test_a_broken_file_is_an_error_that_names_it(client, folder):
    for kind in ("poster", "preview"):
        answer = client.get(f"/api/{kind}/broken.mp4")
        assert answer.status_code == 404 and str(folder / "broken.mp4") in answer.json()["error"]


def test_videos_in_a_bucket(client_of, bucket_server, folder):
    from data.storage import files as storage

    content = (folder / "a/clip.mp4").read_bytes()
    storage.write_bytes("gs://bucket/videos/a/clip.mp4", content)
    storage.write_bytes("gs://bucket/secret.mp4", content)
    client = client_of(FakeIndex("gs://bucket/videos", "a/clip.mp4", "gone.mp4", "../secret.mp4"))
    part = client.get("/media/a/clip.mp4", headers={"range": "bytes=5-9"})
    assert part.status_code == 206 and part.content == content[5:10]
    assert image_of(client.get("/api/poster/a/clip.mp4")).size == (64, 48)
    for name in ("gone.mp4", "%2E%2E%2Fsecret.mp4"):
        assert client.get(f"/media/{name}").status_code == 404

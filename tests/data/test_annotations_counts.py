"""On files of the published formats and sizes, the readers return the published counts."""

import collections

import pytest

from tests.helpers import published

MSRVTT = {"train": 6513, "val": 497, "test": 2990, "each": 20}
ACTIVITYNET = {"train": (10009, 10024), "test": (4917, 4926)}


def counts(dataset, folder, protocol=""):
    """{split: (videos, captions)}, {split: ids without captions}, the ids in no list."""
    clips, uncaptioned, unlisted = published.read_annotations(dataset, folder, protocol=protocol)
    videos = collections.Counter(clip.split for clip in clips)
    captions = collections.Counter()
    for clip in clips:
        captions[clip.split] += len(clip.captions)
    assert len({clip.clip_id for clip in clips}) == len(clips)
    assert not any(clip.path for clip in clips)
    num_uncaptioned = {split: len(ids) for split, ids in uncaptioned.items() if ids}
    return {split: (videos[split], captions[split]) for split in videos}, num_uncaptioned, unlisted


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("msrvtt")
    published.msrvtt(folder, **MSRVTT)
    return folder


def test_msrvtt_protocols(msrvtt):
    # The published 1k-A has 1,000 of the 2,990 test videos; this one has half of them.
    nine, _, unlisted = counts("msrvtt", msrvtt)
    assert nine == {"train": (8505, 170100), "test": (1495, 1495)} and not unlisted
    seven, _, unlisted = counts("msrvtt", msrvtt, "7k")
    assert seven == {"train": (7010, 140200), "test": (1495, 1495)} and len(unlisted) == 1495
    full, _, unlisted = counts("msrvtt", msrvtt, "full")
    assert full == {"train": (6513, 130260), "val": (497, 9940), "test": (2990, 59800)}
    assert not unlisted
    assert counts("msrvtt", msrvtt, "9k")[0] == nine


def test_didemo(tmp_path):
    published.didemo(tmp_path, 8392, 1065, 1004)
    split_counts, uncaptioned, unlisted = counts("didemo", tmp_path)
    assert split_counts == {"train": (8392, 8392), "val": (1065, 1065), "test": (1004, 1004)}
    assert not uncaptioned and not unlisted


def test_activitynet(tmp_path):
    published.activitynet(tmp_path, ACTIVITYNET)
    split_counts, uncaptioned, unlisted = counts("activitynet", tmp_path)
    assert split_counts == {"train": (10009, 10009), "test": (4917, 4917)}
    assert uncaptioned == {"train": 15, "test": 9} and not unlisted


def test_lsmdc(tmp_path):
    published.lsmdc(tmp_path, 20000, 7408, 1000)
    split_counts, _, _ = counts("lsmdc", tmp_path)
    assert split_counts == {"train": (20000, 20000), "val": (7408, 7408), "test": (1000, 1000)}


@pytest.mark.parametrize("kind", ["pkl", "json"])
def test_msvd(tmp_path, kind):
    published.msvd(tmp_path, published.MSVD, kind)
    assert counts("msvd", tmp_path) == (published.MSVD, {}, [])


def test_vatex(tmp_path):
    published.vatex(tmp_path, 25991, 1500, 1500)
    split_counts, _, unlisted = counts("vatex", tmp_path)
    assert split_counts == {"train": (25991, 259910), "val": (1500, 15000), "test": (1500, 15000)}
    assert not unlisted


def test_charades(tmp_path):
    published.charades(tmp_path, 7985, 1863)
    assert counts("charades", tmp_path)[0] == {"train": (7985, 15970), "test": (1863, 3726)}

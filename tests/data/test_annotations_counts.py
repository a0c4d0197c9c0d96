"""Readers on files in the shape and of the size of the published ones give the known counts."""

import collections

import pytest

from data import inputs
from tests.helpers import published

MSRVTT = {"train": 6513, "val": 497, "test": 2990, "each": 20}
ACTIVITYNET = {"train": (10009, 10024), "test": (4917, 4926)}


def counts(dataset, folder, protocol=""):
    """{split: (videos, captions)}, ids without captions, number of ids in no list."""
    found = inputs.read_annotations(dataset, "", str(folder), "", protocol)
    videos = collections.Counter(clip.split for clip in found.clips)
    captions = collections.Counter()
    for clip in found.clips:
        captions[clip.split] += len(clip.captions)
    assert len({clip.clip_id for clip in found.clips}) == len(found.clips)
    assert not any(clip.path for clip in found.clips)
    lacking = {split: len(ids) for split, ids in found.uncaptioned.items() if ids}
    return {split: (videos[split], captions[split]) for split in videos}, lacking, found.unlisted


@pytest.fixture(scope="module")
def msrvtt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("msrvtt")
    published.msrvtt(folder, **MSRVTT)
    return folder


def test_msrvtt_of_each_protocol(msrvtt):
    # 1k-A has 1,000 of the 2,990 test videos; here it has half of them.
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
    found, lacking, unlisted = counts("didemo", tmp_path)
    assert found == {"train": (8392, 8392), "val": (1065, 1065), "test": (1004, 1004)}
    assert not lacking and not unlisted


def test_activitynet(tmp_path):
    published.activitynet(tmp_path, ACTIVITYNET)
    found, lacking, unlisted = counts("activitynet", tmp_path)
    assert found == {"train": (10009, 10009), "test": (4917, 4917)}
    assert lacking == {"train": 15, "test": 9} and not unlisted


def test_lsmdc(tmp_path):
    published.lsmdc(tmp_path, 20000, 7408, 1000)
    found, _, _ = counts("lsmdc", tmp_path)
    assert found == {"train": (20000, 20000), "val": (7408, 7408), "test": (1000, 1000)}


@pytest.mark.parametrize("kind", ["pkl", "json"])
def test_msvd(tmp_path, kind):
    published.msvd(tmp_path, published.MSVD, kind)
    assert counts("msvd", tmp_path) == (published.MSVD, {}, [])


def test_vatex(tmp_path):
    published.vatex(tmp_path, 25991, 1500, 1500)
    found, _, unlisted = counts("vatex", tmp_path)
    assert found == {"train": (25991, 259910), "val": (1500, 15000), "test": (1500, 15000)}
    assert not unlisted


def test_charades(tmp_path):
    published.charades(tmp_path, 7985, 1863)
    assert counts("charades", tmp_path)[0] == {"train": (7985, 15970), "test": (1863, 3726)}

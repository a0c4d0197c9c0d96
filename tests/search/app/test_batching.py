"""Queries that come while a search runs are answered together, and the page answers meanwhile."""

import asyncio

import httpx2
import pytest

from tests.helpers.fake_index import FakeIndex
from tests.search.app.conftest import app_over


def concurrently(index, *queries, meanwhile=None):
    """The answers to queries that all come while the first is being answered."""

    async def ask():
        index.open.clear()
        transport = httpx2.ASGITransport(app_over(index), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            tasks = [asyncio.create_task(client.get("/api/search", params=queries[0]))]
            await asyncio.to_thread(index.started.wait, 30)
            tasks += [
                asyncio.create_task(client.get("/api/search", params=query))
                for query in queries[1:]
            ]
            for _ in range(20):  # until they have all reached the index
                await asyncio.sleep(0)
            if meanwhile:
                await meanwhile(client)
            index.open.set()
            return await asyncio.gather(*tasks)

    return asyncio.run(ask())


@pytest.fixture
def index(tmp_path):
    return FakeIndex(tmp_path, "cat.mp4", "dog.mp4", "bird.mp4")


def test_queries_that_wait_are_one_call_and_each_has_its_own_answer(index):
    queries = [
        {"q": word, "k": str(i % 3 + 1)} for i, word in enumerate(["cat", "dog", "bird"] * 7)
    ]
    answers = concurrently(index, *queries)
    assert [len(call["texts"]) for call in index.calls] == [1, 20]
    for query, answer in zip(queries, answers, strict=True):
        hits = answer.json()["hits"]
        assert len(hits) == int(query["k"]) and hits[0]["id"] == f"{query['q']}.mp4"


def test_queries_with_other_filters_are_other_calls(index):
    same = {"q": "cat", "where": "x=1"}
    concurrently(index, {"q": "dog"}, same, {"q": "cat", "exact": "1"}, same, {"q": "cat"})
    assert [(len(call["texts"]), call["where"], call["exact"]) for call in index.calls] == [
        (1, "", False),
        (2, "x=1", False),
        (1, "", True),
        (1, "", False),
    ]


def test_a_wrong_query_fails_alone(index):
    answers = concurrently(index, {"q": "dog"}, {"q": "cat"}, {"q": " "}, {"q": "bird"})
    assert [answer.status_code for answer in answers] == [200, 200, 400, 200]
    assert answers[3].json()["hits"][0]["id"] == "bird.mp4"
    answers = concurrently(index, {"q": "dog"}, {"q": "a bug"}, {"q": "cat"})
    assert [answer.status_code for answer in answers] == [200, 500, 500]
    assert concurrently(index, {"q": "cat"})[0].status_code == 200


def test_at_most_so_many_are_one_call(index):
    concurrently(index, *[{"q": "cat"}] * 80)
    assert [len(call["texts"]) for call in index.calls] == [1, 32, 32, 15]


def test_the_page_answers_while_the_model_computes(index):
    seen = []

    async def look(client):
        seen.append((await client.get("/")).status_code)
        seen.append((await client.get("/api/index")).json()["clips"])
        seen.append((await client.get("/media/none.mp4")).status_code)

    concurrently(index, {"q": "cat"}, meanwhile=look)
    assert seen == [200, 3, 404]

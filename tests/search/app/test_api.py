"""The JSON API: answers, errors in one line, addresses of clips, foreign hosts, OpenAPI."""

import re
from urllib.parse import quote

import pytest

from hvp_jax.search.app import openapi, why
from tests.helpers.command import ROOT
from tests.helpers.fake_index import FakeIndex
from tests.search.app.conftest import app_over

ODD = "a b/ü? 100% #1+&=<i>'\".mp4"
IDS = ("dog.mp4", "cats/cat.mp4@60-120.5", ODD)


@pytest.fixture
def index(tmp_path):
    for name in ("dog.mp4", "cats/cat.mp4", ODD):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a video")
    return FakeIndex(tmp_path, *IDS, captions="<b>one</b>\ntwo")


@pytest.fixture
def client(client_of, index):
    return client_of(index)


def test_a_search_answers_with_the_best_clips_first(client, index):
    answer = client.get("/api/search", params={"q": "cat", "k": "2", "where": "x=1", "exact": "1"})
    assert answer.status_code == 200
    first, second = answer.json()["hits"]
    assert first == {
        "id": "cats/cat.mp4@60-120.5",
        "path": "cats/cat.mp4",
        "start": 60.0,
        "end": 120.5,
        "score": 3.0,
        "captions": "<b>one</b>\ntwo",
    }
    assert second["score"] <= first["score"] and second["id"] != first["id"]
    assert index.calls == [{"texts": ["cat"], "k": 2, "where": "x=1", "exact": True}]


@pytest.mark.parametrize("clip_id", IDS)
def test_every_id_can_be_asked_for(client, clip_id):
    others = client.get(f"/api/similar/{quote(clip_id, safe='/')}").json()
    assert others["id"] == clip_id and clip_id not in [hit["id"] for hit in others["hits"]]
    explained = client.get("/api/explain", params={"q": "cat", "id": clip_id})
    assert explained.json()["id"] == clip_id and explained.json()["seen"][0] == "cat"
    assert client.get(f"/media/{quote(clip_id, safe='')}").content == b"a video"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/search", 400, "q is missing"),
        ("/api/search?q=", 400, "the text '' is empty; describe what a video shows"),
        ("/api/search?q=x&k=0", 400, "k=0 is not a whole number from 1 to"),
        ("/api/search?q=x&k=1e9", 400, "k=1e9"),
        ("/api/search?q=x&k=%C2%B2", 400, "k=²"),
        ("/api/search?q=x&limit=3", 400, "/api/search has no parameter limit"),
        ("/api/search?q=x&exact=yes", 400, "exact=yes is neither 0 nor 1"),
        ("/api/search?q=x&where=no", 400, "--where=no: no such column"),
        ("/api/similar/none.mp4", 404, "the index has no clip 'none.mp4'"),
        ("/api/explain?q=x&id=none.mp4", 404, "the index has no clip 'none.mp4'"),
        ("/api/poster/none.mp4", 404, "the index has no clip 'none.mp4'"),
        ("/api/poster/dog.mp4", 404, "dog.mp4"),  # it is no video
        ("/api/none", 404, "/api/none: Not Found"),
        ("/api/search?q=a+bug", 500, "a bug, see the log of serve: ZeroDivisionError"),
    ],
)
def test_an_error_is_one_line_and_the_page_goes_on(client, path, status, words):
    answer = client.get(path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert client.get("/api/search?q=cat").status_code == 200


def test_only_this_machine_by_its_own_names_is_answered(client):
    for host, status in (
        ("127.0.0.1:8000", 200),
        ("localhost:1", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("192.168.0.2:8000", 400),
    ):
        for path in ("/", "/api/index", "/media/dog.mp4"):
            assert client.get(path, headers={"host": host}).status_code == status


def test_other_pages_cannot_use_an_answer(client):
    for path in ("/", "/api/index", "/media/dog.mp4", "/api/none"):
        headers = client.get(path, headers={"origin": "https://evil.example"}).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert client.post("/api/index").status_code == 405


def test_the_description_has_every_address_and_field(client, index):
    document = client.get("/api/openapi.json").json()
    routes = {route.path.replace(":path", "") for route in app_over(index).routes}
    assert set(document["paths"]) == routes - {"/", "/page.css", "/page.js"}
    hit = client.get("/api/search?q=cat").json()["hits"][0]
    assert set(openapi.HIT["properties"]) == set(hit)
    for path, operation in document["paths"].items():
        names = {p["name"] for p in operation["get"]["parameters"] if p["in"] == "path"}
        assert names == set(re.findall(r"{(\w+)}", path))
        for parameter in operation["get"]["parameters"]:
            if parameter["in"] == "query" and not parameter.get("required"):
                value = parameter["schema"].get("default", "x=1")
                url = path.replace("{id}", "dog.mp4")
                parameters = {"q": "cat"} if "search" in path else {}
                answer = client.get(url, params={parameter["name"]: value, **parameters})
                assert answer.status_code == 200, (path, parameter["name"])
    assert {"score", "parts", "words", "frames"} <= set(why.SCHEMA["properties"])


def test_the_page_needs_nothing_from_elsewhere(client):
    for path in ("/", "/page.css", "/page.js"):
        answer = client.get(path)
        text = answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert answer.status_code == 200 and "://" not in text
        for word in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "document.write"):
            assert word not in text
    kinds = [client.get(path).headers["content-type"] for path in ("/", "/page.css", "/page.js")]
    assert [kind.partition(";")[0] for kind in kinds] == [
        "text/html",
        "text/css",
        "text/javascript",
    ]
    folder = ROOT / "hvp_jax/search/app/page"
    assert {path.name for path in folder.iterdir()} == {"index.html", "page.css", "page.js"}

"""The description of the JSON API, in OpenAPI 3.1."""

from typing import Any

TEXT, NUMBER = {"type": "string"}, {"type": "number"}
SECONDS = {"type": ["number", "null"], "description": "seconds; null for a whole video"}


def _parameter(name: str, description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema} | more


def object_of(description: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": fields,
        "required": list(fields),
    }


def list_of(items: dict[str, Any], description: str = "") -> dict[str, Any]:
    return {"type": "array", "items": items} | ({"description": description} if description else {})


def _answer(description: str, schema: dict[str, Any], kind: str = "application/json") -> dict:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _operation(summary: str, answer: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    error = {"$ref": "#/components/responses/Error"}
    return {
        "get": {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {"200": answer, "400": error, "404": error},
        }
    }


QUERY = _parameter("q", "what a video shows", TEXT, required=True)
COUNT = _parameter("k", "how many clips", {"type": "integer", "minimum": 1, "default": 12})
WHERE = _parameter("where", "a filter, as in SQL: path LIKE '%2024%'", TEXT)
EXACT = _parameter(
    "exact", "score every clip in full", {"type": "string", "enum": ["0", "1"], "default": "0"}
)
CLIP = _parameter("id", "a clip's id, with its slashes", TEXT, required=True) | {"in": "path"}
CLIP_QUERY = _parameter("id", "a clip's id", TEXT, required=True)
BYTES = {"type": "string", "format": "binary"}

HIT = object_of(
    "a clip that was found",
    id=TEXT | {"description": "for the other requests; percent-encode it"},
    path=TEXT | {"description": "relative to the indexed folder"},
    start=SECONDS,
    end=SECONDS,
    score=NUMBER,
    captions=TEXT | {"description": "a line for each; empty if there are none"},
)
HITS = list_of({"$ref": "#/components/schemas/Hit"}, "best first")


ABOUT = object_of(
    "",
    text=TEXT | {"description": "all of it in one line"},
    clips={"type": "integer"},
    videos=TEXT | {"description": "the indexed folder"},
    weights=TEXT | {"description": "where the model was loaded from"},
    fingerprint=TEXT | {"description": "of the model"},
    recall={
        "type": ["object", "null"],
        "description": "what share of the full ranking's best clips stage one keeps, measured",
    },
)


def document(explanation: dict[str, Any]) -> dict[str, Any]:
    """The description; `explanation` is the schema of the answer of /api/explain."""
    paths = {
        "/api/search": _operation(
            "Clips that show what a text says",
            _answer("the best clips", object_of("", query=TEXT, hits=HITS, seconds=NUMBER)),
            *(QUERY, COUNT, WHERE, EXACT),
        ),
        "/api/similar/{id}": _operation(
            "Clips like a clip",
            _answer("the best clips", object_of("", id=TEXT, hits=HITS, seconds=NUMBER)),
            *(CLIP, COUNT, WHERE),
        ),
        "/api/explain": _operation(
            "Why a clip has its score",
            _answer("the parts of the score", explanation),
            *(CLIP_QUERY, QUERY),
        ),
        "/api/poster/{id}": _operation(
            "A frame from the middle of a clip", _answer("a picture", BYTES, "image/webp"), CLIP
        ),
        "/api/preview/{id}": _operation(
            "A clip without sound, as every browser shows it",
            _answer("an animation", BYTES, "image/webp"),
            CLIP,
        ),
        "/media/{id}": _operation(
            "The whole file of a clip; ranges may be requested",
            _answer("a video", BYTES, "*/*"),
            CLIP,
        ),
        "/api/index": _operation("The index and its model", _answer("what it is", ABOUT)),
        "/api/openapi.json": _operation("This document", _answer("OpenAPI 3.1", {})),
    }
    error = _answer("one line that says what is wrong", object_of("", error=TEXT))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Search by HVP-Net", "version": "1"},
        "paths": paths,
        "components": {"schemas": {"Hit": HIT}, "responses": {"Error": error}},
    }

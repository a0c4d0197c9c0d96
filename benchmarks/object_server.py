"""Serves the files of a folder as gs://bucket, for reading, with a latency.

    python benchmarks/object_server.py FOLDER [--latency=0.03]

It prints the environment in which gcsfs and ArrayRecord find it, and answers until stdin is closed.
One thread answers thousands of requests a second, so that what is measured is the reader:
the emulator of the tests, with a Python thread for each connection, answers a few hundred.
"""

import argparse
import asyncio
import json
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

GENERATION = "1"
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/bucket/o(?:/(?P<name>.+))?|/bucket/(?P<xml>.+)")


class Connection(asyncio.Protocol):
    """One connection: a request follows on the answer to the one before."""

    def __init__(self, folder: Path, latency: float, contents: dict[str, bytes]):
        self._folder, self._latency, self._contents = folder, latency, contents
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            loop = asyncio.get_running_loop()
            loop.call_later(self._latency, self._answer, head.decode())

    def _answer(self, head: str) -> None:
        if self._transport.is_closing():
            return
        target = head.split(" ", 2)[1]
        url = urlsplit(target)
        found = OBJECT.fullmatch(url.path)
        query = parse_qs(url.query)
        name = unquote((found["name"] or found["xml"] or "") if found else "")
        if found and not name:
            return self._send(200, self._listing(query))
        content = self._content(name)
        if content is None:
            return self._send(404, {"error": {"code": 404, "message": "not found"}})
        if found and found["name"] and query.get("alt") != ["media"] and "/download" not in target:
            return self._send(200, _resource(name, len(content)))
        self._send_part(content, head)

    def _content(self, name: str) -> bytes | None:
        if name not in self._contents:
            path = self._folder / name
            if not name or not path.is_file():
                return None
            self._contents[name] = path.read_bytes()
        return self._contents[name]

    def _listing(self, query: dict[str, list[str]]) -> dict:
        """The objects below a prefix; with a delimiter, those in its folder and the folders."""
        (prefix,) = query.get("prefix", [""])
        paths = [path for path in sorted(self._folder.rglob("*")) if path.is_file()]
        sizes = {str(path.relative_to(self._folder)): path.stat().st_size for path in paths}
        items, folders = [], set()
        for name, size in sizes.items():
            if not name.startswith(prefix):
                continue
            inner, slash, _ = name.removeprefix(prefix).partition("/")
            if slash and "delimiter" in query:
                folders.add(f"{prefix}{inner}/")
            else:
                items.append(_resource(name, size))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _send_part(self, content: bytes, head: str) -> None:
        found = re.search(r"^range: *bytes=(\d*)-(\d*)", head, re.IGNORECASE | re.MULTILINE)
        if not found:
            return self._send(200, content)
        size = len(content)
        if found[1]:
            begin, end = int(found[1]), min(int(found[2] or size), size - 1) + 1
        else:
            begin, end = max(size - int(found[2]), 0), size
        if begin >= size:
            return self._send(416, {"error": {"code": 416, "message": "no such range"}})
        part = f"Content-Range: bytes {begin}-{end - 1}/{size}\r\n"
        self._send(206, content[begin:end], part)

    def _send(self, status: int, content: bytes | dict, more: str = "") -> None:
        kind = "application/octet-stream"
        if isinstance(content, dict):
            content, kind = json.dumps(content).encode(), "application/json"
        head = (
            f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            f"x-goog-generation: {GENERATION}\r\n{more}\r\n"
        )
        self._transport.write(head.encode() + content)


def _resource(name: str, size: int) -> dict:
    """What the JSON API says about an object."""
    return {
        "kind": "storage#object",
        "id": f"bucket/{name}/{GENERATION}",
        "name": name,
        "bucket": "bucket",
        "size": str(size),
        "generation": GENERATION,
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
    }


async def serve(folder: Path, latency: float) -> None:
    """Prints where the bucket is, and answers until stdin is closed."""
    loop, contents = asyncio.get_running_loop(), {}
    server = await loop.create_server(
        lambda: Connection(folder, latency, contents), "127.0.0.1", 0, backlog=1000
    )
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    names = ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    variables = dict.fromkeys(names, url) | {"GOOGLE_CLOUD_PROJECT": "project"}
    print(json.dumps(variables), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds of each request")
    flags = parser.parse_args()
    asyncio.run(serve(flags.folder, flags.latency))

"""An emulated bucket on this machine, whose faults a test chooses.

gcp-storage-emulator answers the requests. Added to it is what this project relies on and it does
not do: to replace or remove an object only if it is of the generation that a request names
(`ifGenerationMatch`; 0: there is none), to send the end of an object (`Range: bytes=-COUNT`), and
to name the generation of a download.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from etils.epath import backend as epath_backend
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "gs://bucket"

# (method, URL) -> the status to answer with, or None to answer as usual. It may sleep.
Fault = Callable[[str, str], int | None]


def no_fault(method: str, url: str) -> None:
    """Every request is answered as usual."""


class EmulatedBucket:
    """The server of gs://bucket; `environment` is what a process needs to find it."""

    def __init__(self) -> None:
        self.fault: Fault = no_fault
        self.requests: list[tuple[str, str]] = []  # method, URL
        self._lock = threading.RLock()
        self._storage = _Storage()
        buckets.create_bucket("bucket", self._storage)
        handler = partial(_Handler, self, self._storage)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record
            "GOOGLE_CLOUD_PROJECT": "project",
        }
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, prefix: str = "") -> dict[str, bytes]:
        """The content of every object whose name begins with `prefix`."""
        with self._lock:
            found = self._storage.get_file_list("bucket", prefix, None)[0]
            names = [item["name"] for item in found]
            return {name: self._storage.get_file("bucket", name) for name in names}

    def copy(self, source: str, destination: str) -> None:
        """Makes a copy of an object, as another host would."""
        with self._lock:
            fields = self._storage.get_file_obj("bucket", source) | {"name": destination}
            content = self._storage.get_file("bucket", source)
            self._storage.expected = None
            self._storage.create_file("bucket", destination, content, fields)


class _AnotherGeneration(Exception):
    pass


class _Storage(Storage):
    """In memory; what is written or removed must have had the generation `expected`, if any."""

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)
        self.expected: str | None = None
        self.written: list[str] = []  # names of objects

    def create_file(self, bucket_name: str, file_name: str, *args: Any, **options: Any) -> None:
        self._check(bucket_name, file_name)
        super().create_file(bucket_name, file_name, *args, **options)
        self.written.append(file_name)

    def create_resumable_upload(self, bucket_name: str, file_name: str, *args: Any) -> str:
        self._check(bucket_name, file_name)
        return super().create_resumable_upload(bucket_name, file_name, *args)

    def delete_file(self, bucket_name: str, file_name: str) -> None:
        self._check(bucket_name, file_name)
        super().delete_file(bucket_name, file_name)

    def _write_config_to_file(self) -> None:
        """Nothing: every request would write down all objects, and nobody reads that."""

    def _check(self, bucket_name: str, file_name: str) -> None:
        generation = "0"
        with contextlib.suppress(NotFound):
            generation = self.get_file_obj(bucket_name, file_name)["generation"]
        if self.expected not in (None, generation):
            raise _AnotherGeneration


class _Handler(RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def __init__(self, bucket: EmulatedBucket, *args: object):
        self.bucket = bucket
        super().__init__(*args)

    def handle_one_request(self) -> None:
        # A client that was killed has closed the connection.
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _answer(self, method: str, handle: Callable[[], None]) -> None:
        url = unquote(self.path)
        if "uploadType=multipart" in url:  # the name is at the beginning of the content
            name = re.search(rb'"name": "([^"]+)"', self.rfile.peek(1000))
            url += f"&name={name[1].decode()}" if name else ""
        self.bucket.requests.append((method, url))
        status = self.bucket.fault(method, url)
        if status is None:
            query = parse_qs(urlparse(self.path).query)
            with self.bucket._lock:
                (self.storage.expected,) = query.get("ifGenerationMatch", [None])
                try:
                    return handle()
                except _AnotherGeneration:
                    status = HTTPStatus.PRECONDITION_FAILED
        else:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b'{"error": {"code": %d, "message": "fault of the test"}}' % status
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        # The generation of what is downloaded, which TensorStore gives back when it replaces that.
        name = urlparse(unquote(self.path)).path.partition("/bucket/o/")[2]
        if self.command == "GET" and name:
            with contextlib.suppress(NotFound):
                generation = self.storage.get_file_obj("bucket", name)["generation"]
                self.send_header("x-goog-generation", generation)
        super().end_headers()

    def do_GET(self) -> None:
        self._answer("GET", self._get)

    def _get(self) -> None:
        end = re.fullmatch(r"bytes=-(\d+)", self.headers.get("Range", ""))
        name = re.search(r"/b/bucket/o/([^?]+)", self.path)
        with contextlib.suppress(NotFound):
            if end and name:
                size = len(self.storage.get_file("bucket", unquote(name[1])))
                self.headers.replace_header("Range", f"bytes={max(size - int(end[1]), 0)}-")
        super().do_GET()

    def do_POST(self) -> None:
        self._answer("POST", super().do_POST)

    def do_PUT(self) -> None:
        self._answer("PUT", super().do_PUT)

    def do_DELETE(self) -> None:
        self._answer("DELETE", super().do_DELETE)

    def do_PATCH(self) -> None:
        self._answer("PATCH", super().do_PATCH)


@contextlib.contextmanager
def emulated_bucket() -> Iterator[EmulatedBucket]:
    """gs://bucket, for this process too."""
    bucket = EmulatedBucket()
    with _environment(bucket.environment):
        yield bucket
    bucket.close()


@contextlib.contextmanager
def emulated_s3() -> Iterator[dict[str, str]]:
    """s3://bucket by moto's server, for this process too: the environment that finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    _forget_file_systems()
    with _environment(variables):
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield variables
    server.stop()


def _forget_file_systems() -> None:
    """Of s3://, which keep the address of an earlier server in this process."""
    from data.storage.s3 import FileSystem

    FileSystem.clear_instance_cache()
    epath_backend.fsspec_backend._get_filesystem.cache_clear()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def unavailable_for(seconds: float, status: int = 503) -> Fault:
    """A fault that begins with the first request and ends after so many seconds."""
    started: list[float] = []

    def fault(method: str, url: str) -> int | None:
        started.append(time.monotonic())
        return status if time.monotonic() - started[0] < seconds else None

    return fault


def latency(seconds: float) -> Fault:
    """Every request takes so many seconds more."""

    def fault(method: str, url: str) -> None:
        time.sleep(seconds)

    return fault

"""gs://: gcsfs, with errors in plain words and without a cache of what other hosts change."""

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from data.errors import UsageError
from data.storage import faults

try:
    import aiohttp
    import fsspec.asyn
    import gcsfs
    import google.auth.exceptions
    import requests
    from gcsfs.retry import ChecksumError, HttpError
except ImportError:
    raise UsageError("gs:// needs `pip install -r requirements-bucket.txt`") from None

BLOCK = 16 * 2**20  # bytes of a request
LOGIN = "run `gcloud auth application-default login`, or use a service account"

NO_ANSWER = (
    requests.exceptions.RequestException,
    aiohttp.ClientError,
    TimeoutError,
    ChecksumError,
)

# Of Google's packages, about the version of grpcio that we need.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")
# It logs a traceback of what is raised anyway.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


class FileSystem(gcsfs.GCSFileSystem):
    """GCSFileSystem whose errors are those of `faults`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"use_listings_cache": False})

    async def _call(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        try:
            return await super()._call(method, path, *args, **options)
        except Exception as error:
            raise _explain(error, _name(path, args)) from error

    async def _get_file(self, rpath: str, lpath: str, callback: Any = None, **options: Any) -> None:
        """Block by block. gcsfs's own makes a TypeError of every fault, and does not try again."""
        size = (await self._info(rpath))["size"]
        with open(lpath, "wb") as file:
            for start in range(0, size, BLOCK):
                end = min(start + BLOCK, size)
                file.write(await self._cat_file(rpath, start=start, end=end))

    def read_version(self, path: str) -> tuple[bytes, str]:
        """An object's content and generation."""
        headers, content = self._wait(self._call, "GET", self.url(path))
        return content, headers["x-goog-generation"]

    def replace_version(self, path: str, content: bytes, generation: str) -> None:
        """Replaces an object; raises FileExistsError if it is of another generation, or gone."""
        bucket, key, _ = self.split_path(path)
        url = f"{self._location}/upload/storage/v1/b/{bucket}/o"
        options = {"uploadType": "media", "name": key, "ifGenerationMatch": generation}
        self._wait(self._call, "POST", url, data=content, **options)

    def _wait(self, coroutine: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return fsspec.asyn.sync(self.loop, coroutine, *args, **options)


def _explain(error: Exception, path: str) -> Exception:
    if isinstance(error, HttpError) and str(error.code).isdigit():
        return faults.from_status(int(error.code), path, str(error.message))
    if isinstance(error, FileNotFoundError):
        return faults.from_status(404, path, "")
    if isinstance(error, FileExistsError):
        return faults.from_status(412, path, "")
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return faults.from_status(403, path, str(error).partition("\n")[2])
    if isinstance(error, ValueError) and str(error).startswith("Bad Request"):
        return faults.from_status(400, path, str(error).partition("\n")[2])
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return faults.no_credentials(path, LOGIN)
    if isinstance(error, requests.exceptions.ProxyError):  # what gcsfs makes of it
        return faults.from_status(502, path, "bad gateway")
    if isinstance(error, NO_ANSWER):
        return faults.no_connection(path, error)
    return error


def _name(path: str, args: tuple[Any, ...]) -> str:
    """gs://BUCKET/OBJECT, as far as a request names it."""
    if args:
        return "gs://" + "/".join(map(str, args))
    found = re.search(r"/b/([^/?]+)(?:/o/([^?]+)|.*[?&]name=([^&]+))?", path)
    parts = [unquote(part) for part in found.groups() if part] if found else []
    return "gs://" + "/".join(parts) if parts else path

"""s3://: s3fs, with errors in plain words and without a cache of what other hosts change."""

from typing import Any

from data.errors import UsageError
from data.storage import faults

try:
    import botocore.exceptions
    import fsspec.asyn
    import s3fs
except ImportError:
    raise UsageError("s3:// needs `pip install -r requirements-bucket.txt`") from None

LOGIN = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class FileSystem(s3fs.S3FileSystem):
    """S3FileSystem whose errors are those of `faults`."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"use_listings_cache": False})

    async def _call_s3(self, method: str, *args: Any, **options: Any) -> Any:
        try:
            return await super()._call_s3(method, *args, **options)
        except Exception as error:
            path = "/".join(str(options[key]) for key in ("Bucket", "Key") if options.get(key))
            raise _explain(error, f"s3://{path}") from error

    def read_version(self, path: str) -> tuple[bytes, str]:
        """An object's content and ETag."""
        return fsspec.asyn.sync(self.loop, self._read_version, path)

    async def _read_version(self, path: str) -> tuple[bytes, str]:
        bucket, key, _ = self.split_path(path)
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return await body.read(), answer["ETag"]

    def replace_version(self, path: str, content: bytes, etag: str) -> None:
        """Replaces an object; raises FileExistsError if it has another ETag, or is gone."""
        fsspec.asyn.sync(self.loop, self._replace_version, path, content, etag)

    async def _replace_version(self, path: str, content: bytes, etag: str) -> None:
        bucket, key, _ = self.split_path(path)
        try:
            await self._call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfMatch=etag)
        except FileNotFoundError as error:
            raise FileExistsError(*error.args) from None


def _explain(error: Exception, path: str) -> Exception:
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return faults.no_credentials(path, LOGIN)
    if isinstance(error, FileNotFoundError):
        return faults.from_status(404, path, "")
    if isinstance(error, FileExistsError) or _code(error) == "PreconditionFailed":
        return faults.from_status(412, path, "")
    if isinstance(error, PermissionError):
        return faults.from_status(403, path, str(error))
    if isinstance(error, botocore.exceptions.BotoCoreError):  # no connection, no such profile
        return faults.no_connection(path, error)
    if isinstance(error, OSError) and error.filename is None:
        return OSError(error.errno or 5, error.strerror or str(error), path)
    return error


def _code(error: Exception) -> str:
    """What S3 calls an error, if it is one of its answers."""
    answer = getattr(error.__cause__, "response", {})
    return answer.get("Error", {}).get("Code", "")

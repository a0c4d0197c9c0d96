"""What went wrong with a bucket, as an OSError whose `strerror` is the reason in plain words."""

import errno
import re

OUT_OF_REACH = "the bucket cannot be reached"
NO_BUCKET = "there is no such object or bucket"


def from_status(status: int, path: str, message: str) -> OSError:
    """The error for an answer with the HTTP status `status`; `message` is the server's own."""
    message = re.sub(r"\s+", " ", message).strip()[:200]
    if status == 401:
        return PermissionError(errno.EACCES, f"no valid credentials ({message})", path)
    if status == 403:
        return PermissionError(errno.EACCES, f"no right to do that ({message})", path)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, NO_BUCKET, path)
    if status == 412:
        return FileExistsError(errno.EEXIST, "it exists", path)
    if status in (408, 429) or status >= 500:
        reason = f"{OUT_OF_REACH}: it answers {status} ({message}), after several tries"
        return OSError(errno.EIO, reason, path)
    return OSError(errno.EIO, f"the bucket answers {status} ({message})", path)


def no_connection(path: str, error: BaseException) -> OSError:
    """The error if there was no answer at all."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return OSError(errno.EIO, f"{OUT_OF_REACH}: {reason}", path)


def no_credentials(path: str, remedy: str) -> OSError:
    """The error if this machine has no credentials; `remedy` is the command that makes them."""
    return PermissionError(errno.EACCES, f"no credentials on this machine: {remedy}", path)

"""Why a file is not a readable video."""

import os
import stat
import struct

from data.errors import DataError

HEAD = 4096  # bytes at the start of a file that are checked for being text
MAX_BOXES = 10_000  # boxes of an MP4 file that are looked at


def unreadable(path: str, reason: str) -> DataError:
    return DataError(
        f"{path}: not a readable video ({reason}); replace the file or remove its captions"
    )


def fault_of_file(path: str) -> tuple[str, bool]:
    """Why a path cannot be read at all, empty if it can be; and whether the file is missing.

    Opens only regular files: opening a pipe would block for ever.
    """
    if not path:
        return "no such file", True
    try:
        status = os.stat(path)
    except OSError as error:
        if not os.path.islink(path):
            return describe(error), isinstance(error, FileNotFoundError)
        if isinstance(error, FileNotFoundError):
            return f"a link to {os.readlink(path)!r}, which does not exist", True
        return f"a link that leads nowhere ({describe(error)})", False
    if not stat.S_ISREG(status.st_mode):
        return "a directory" if stat.S_ISDIR(status.st_mode) else "not a file", False
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return f"{describe(error)} (mode {stat.S_IMODE(status.st_mode):03o})", False
    return ("" if status.st_size else "empty file"), False


def describe(error: OSError) -> str:
    """Why a file cannot be read, as the end of a sentence."""
    text = error.strerror or str(error)
    return text[0].lower() + text[1:]


def reason_of_content(path: str) -> str:
    """What a regular file that does not open as a video contains; empty if that is unknown."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head.strip(b"\0"):
        return "contains only zeros"
    if head[4:8] == b"ftyp":
        return _reason_of_boxes(path)
    try:
        text = head.decode("utf-8") if len(head) < HEAD else head[:-4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return ""
    if all(c.isprintable() or c in "\t\r\n\f" for c in text) and text.encode()[:64] == head[:64]:
        return "a text file, not a video"
    return ""


def _reason_of_boxes(path: str) -> str:
    """Checks an MP4 file (or MOV, 3GP) for its index, and for a length that fits its boxes."""
    size, offset, kinds = os.path.getsize(path), 0, set()
    with open(path, "rb") as file:
        for _ in range(MAX_BOXES):
            file.seek(offset)
            head = file.read(16).ljust(16, b"\0")
            length, kind, long_length = struct.unpack(">I4sQ", head)
            length = long_length if length == 1 else length or size - offset
            kinds.add(kind)
            if length < 8 or offset + length >= size:
                break
            offset += length
    if b"moov" in kinds:
        return ""
    if offset + length > size:
        return f"cut short: {size} bytes of at least {offset + length}, and no index (moov)"
    return "its index (moov) is missing"

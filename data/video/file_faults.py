"""What a file is, where it is no video."""

import os
import stat
import struct

HEAD = 4096  # bytes that tell a text
BOXES = 10_000  # of a file in the MP4 family, looked at


def fault_of_file(path: str) -> tuple[str, bool]:
    """Why a path cannot be read at all, empty if it can; and whether nothing is there.

    Opens nothing but plain files: a pipe would be waited at for ever.
    """
    if not path:
        return "no such file", True
    try:
        found = os.stat(path)
    except OSError as error:
        if not os.path.islink(path):
            return _plain(error), isinstance(error, FileNotFoundError)
        if isinstance(error, FileNotFoundError):
            return f"a link to {os.readlink(path)!r}, which does not exist", True
        return f"a link that leads nowhere ({_plain(error)})", False
    if not stat.S_ISREG(found.st_mode):
        return "a directory" if stat.S_ISDIR(found.st_mode) else "not a file", False
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        return f"{_plain(error)} (mode {stat.S_IMODE(found.st_mode):03o})", False
    return ("" if found.st_size else "empty file"), False


def _plain(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[0].lower() + text[1:]


def reason_of_content(path: str) -> str:
    """What is in a plain file that does not open as a video; empty if it cannot be told."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head.strip(b"\0"):
        return "nothing but zeros in it"
    if head[4:8] == b"ftyp":
        return _reason_of_boxes(path)
    try:
        text = head.decode("utf-8") if len(head) < HEAD else head[:-4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return ""
    if all(c.isprintable() or c in "\t\r\n\f" for c in text) and text.encode()[:64] == head[:64]:
        return "a text, no video"
    return ""


def _reason_of_boxes(path: str) -> str:
    """Of the MP4 family: whether its index is there, and the file as long as its boxes."""
    size, place, seen = os.path.getsize(path), 0, set()
    with open(path, "rb") as file:
        for _ in range(BOXES):
            file.seek(place)
            head = file.read(16).ljust(16, b"\0")
            length, kind, long_length = struct.unpack(">I4sQ", head)
            length = long_length if length == 1 else length or size - place
            seen.add(kind)
            if length < 8 or place + length >= size:
                break
            place += length
    if b"moov" in seen:
        return ""
    if place + length > size:
        return f"cut short: {size} bytes of at least {place + length}, and no index (moov)"
    return "its index (moov) is missing"

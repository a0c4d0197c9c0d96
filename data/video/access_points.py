"""Packets at which decoding may start: all frames from there on are those of a full decode.

A container marks key frames, but what that means depends on the codec. Only what is certain
counts here; a file without such packets is decoded from its start.
"""

from typing import Any

CLEAN_KEYFRAMES = {"vp8", "vp9", "av1"}  # a key frame resets all state of the decoder
H264_IDR = 5
HEVC_IRAP = range(16, 22)  # IDR, BLA and CRA: frames shown later do not refer to anything before
MPEG2_SEQUENCE = b"\0\0\1\xb3"


def is_access_point(stream: Any, packet: Any) -> bool:
    """Whether a packet that the container marks as a key frame resets the decoder."""
    codec = stream.codec_context.codec
    name = codec.canonical_name
    if stream.metadata.get("alpha_mode") == "1":
        return False  # the key frames of the alpha channel may be elsewhere
    if codec.intra_only or name in CLEAN_KEYFRAMES:
        return True
    if name == "h264":
        return H264_IDR in {unit[0] & 31 for unit in _units(stream, packet, 4)}
    if name == "hevc":
        return any(unit[0] >> 1 & 63 in HEVC_IRAP for unit in _units(stream, packet, 21))
    return name == "mpeg2video" and bytes(packet).startswith(MPEG2_SEQUENCE)


def _units(stream: Any, packet: Any, length_size_at: int) -> list[bytes]:
    """The first bytes of each NAL unit of a packet.

    `length_size_at`: the byte of an MP4 or Matroska header that holds the size of a unit's length.
    """
    data = memoryview(bytes(packet))
    header = stream.codec_context.extradata or b""
    if len(header) <= length_size_at or header[0] != 1:  # Annex B: units begin with 0 0 1
        return [bytes(part[:1]) for part in bytes(data).split(b"\0\0\1")[1:] if part]
    size = (header[length_size_at] & 3) + 1
    units, at = [], 0
    while at + size < len(data):
        length = int.from_bytes(data[at : at + size], "big")
        units.append(bytes(data[at + size : at + size + 1]))
        at += size + length
    return units

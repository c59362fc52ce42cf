"""Writes TensorBoard event files: TFRecords with CRC-32C around a few protobuf fields.

Written by hand: the package `tensorboard` brings grpcio, protobuf, Pillow and three more, 77 MB, in place of this file,
and torch's SummaryWriter needs it too. `metrics.jsonl` is the record; this is a view for plots.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = (_byte >> 1) ^ (0x82F63B78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), RFC 3720."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


class Events:
    """One event file, written afresh with what is known already."""

    def __init__(self, folder: Path, past: Mapping[int, Mapping[str, float]] | None = None) -> None:
        self.file = folder / "events.out.tfevents.0.afterword"
        self.file.write_bytes(_record(_event(b"\x1a" + _sized(b"brain.Event:2"))))
        for step, scalars in (past or {}).items():
            self.add(step, scalars)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """All scalars of a step in one record."""
        values = b"".join(
            b"\x0a" + _sized(b"\x0a" + _sized(tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in scalars.items()
        )
        with self.file.open("ab") as stream:
            stream.write(_record(_event(b"\x10" + _varint(step) + b"\x2a" + _sized(values))))


def _event(fields: bytes) -> bytes:
    """Event: wall_time = 1 (double), step = 2, file_version = 3, summary = 5."""
    return b"\x09" + struct.pack("<d", time.time()) + fields


def _record(data: bytes) -> bytes:
    """TFRecord: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data

"""An Arrow file whose footer refers to one entry of its metadata often: a small file of much text."""

from __future__ import annotations

import struct

END = b"ARROW1"


def aliased(data: bytes, key: bytes, value: bytes, count: int) -> bytes:
    """The Arrow file with ``count`` references to one entry instead of its metadata.

    Offsets in a flatbuffer lead forwards, so that the vector of them, the entry's table and its two
    texts are put behind the footer that there was.
    """
    tail = len(data) - len(END) - 4
    start = tail - struct.unpack_from("<i", data, tail)[0]
    footer = bytearray(data[start:tail])
    schema = _follow(footer, struct.unpack_from("<I", footer, 0)[0], 1)
    place = _place(footer, schema, 2)
    footer += bytes(-len(footer) % 4)
    new = len(footer)
    struct.pack_into("<I", footer, place, new - place)
    index = new + 4 + 4 * count  # of the entry's table, which lies behind it
    table = index + 8
    footer += struct.pack("<I", count)
    footer += b"".join(struct.pack("<I", table - new - 4 - 4 * i) for i in range(count))
    footer += struct.pack("<4H", 8, 12, 4, 8)
    first = table + 12
    second = first + 4 + len(key) + 1
    second += -second % 4
    footer += struct.pack("<iII", table - index, first - table - 4, second - table - 8)
    footer += struct.pack("<I", len(key)) + key + b"\0"
    footer += bytes(second - len(footer))
    footer += struct.pack("<I", len(value)) + value + b"\0"
    footer += bytes(-len(footer) % 8)
    return data[:start] + bytes(footer) + struct.pack("<i", len(footer)) + END


def _place(data: bytearray, table: int, field: int) -> int:
    index = table - struct.unpack_from("<i", data, table)[0]
    return int(table + struct.unpack_from("<H", data, index + 4 + 2 * field)[0])


def _follow(data: bytearray, table: int, field: int) -> int:
    place = _place(data, table, field)
    return int(place + struct.unpack_from("<I", data, place)[0])

"""What the record batches of an Arrow file unpack to, told before any of them is.

Every packed buffer begins with the length that it claims to unpack to, which is allocated before
anything can be seen of what is in it. The claims are read here from the file's own index (its
messages are flatbuffers: https://arrow.apache.org/docs/format/Columnar.html), nothing else is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_END = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_RECORD_BATCH = 3  # the kind of a message
_MOST_BATCHES = 100_000
_MOST_BUFFERS = 1_000  # of a batch


class BatchSize(NamedTuple):
    """Of one record batch: its rows, and bytes of each of its buffers once it is unpacked, in the
    order of the columns.
    """

    rows: int
    buffers: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.buffers)


class _Table:
    """A table of a flatbuffer: its fields by number."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at
        self._index = at - _number("<i", data, at)
        self._size = _number("<H", data, self._index)

    def place(self, field: int) -> int | None:
        """Where a field's value lies, None where it has its default."""
        slot = 4 + 2 * field
        if slot + 2 > self._size:
            return None
        offset = _number("<H", self.data, self._index + slot)
        return self.at + offset if offset else None

    def follow(self, field: int) -> int | None:
        """Where what a field refers to lies."""
        place = self.place(field)
        return None if place is None else place + _number("<I", self.data, place)

    def vector(self, field: int, width: int) -> Iterator[int]:
        """Where the elements of a vector of structures lie."""
        start = self.follow(field)
        if start is not None:
            for index in range(_number("<I", self.data, start)):
                yield start + 4 + width * index


def batch_sizes(data: memoryview) -> Iterator[BatchSize]:
    """Sizes of the record batches of an Arrow file, in order; ``data`` is all of it.

    Raises:
        ValueError: it is no Arrow file, or its index leads out of it.
    """
    if bytes(data[-len(_END) :]) != _END:
        raise ValueError("it does not end like an Arrow file")
    length = _number("<i", data, len(data) - len(_END) - 4)
    start = len(data) - len(_END) - 4 - length
    footer = _Table(data, start + _number("<I", data, start))
    for index, block in enumerate(footer.vector(3, 24)):
        if index >= _MOST_BATCHES:
            raise ValueError(f"it names more than {_MOST_BATCHES} batches")
        at = _number("<q", data, block)
        body = at + _number("<i", data, block + 8)
        at += 8 if _number("<I", data, at) == _CONTINUES else 4
        message = _Table(data, at + _number("<I", data, at))
        kind, header = message.place(1), message.follow(2)
        if kind is None or header is None or _number("<B", data, kind) != _RECORD_BATCH:
            raise ValueError("its index names what is no record batch")
        yield _batch(_Table(data, header), body)


def _batch(batch: _Table, body: int) -> BatchSize:
    rows = batch.place(0)
    packed = batch.place(3) is not None
    buffers = []
    for index, entry in enumerate(batch.vector(2, 16)):
        if index >= _MOST_BUFFERS:
            raise ValueError(f"a batch has more than {_MOST_BUFFERS} buffers")
        length = _number("<q", batch.data, entry + 8)
        if packed and length:
            claimed = _number("<q", batch.data, body + _number("<q", batch.data, entry))
            length = length - 8 if claimed == -1 else claimed  # -1: this one is not packed
        if length < 0:
            raise ValueError("a buffer has a negative length")
        buffers.append(length)
    return BatchSize(0 if rows is None else _number("<q", batch.data, rows), tuple(buffers))


def _number(form: str, data: memoryview, at: int) -> int:
    """A number within the file. Raises ValueError outside of it."""
    if not 0 <= at <= len(data) - struct.calcsize(form):
        raise ValueError("its index leads out of it")
    return int(struct.unpack_from(form, data, at)[0])

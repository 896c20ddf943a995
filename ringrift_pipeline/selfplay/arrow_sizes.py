"""What the record batches of an Arrow file unpack to, told before any of them is.

Every packed buffer begins with the length that it claims to unpack to, which is allocated before
anything can be seen of what is in it. The claims are read here from the file's own index (its
messages are flatbuffers: https://arrow.apache.org/docs/format/Columnar.html), nothing else is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

_END = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_RECORD_BATCH = 3  # the kind of a message
_MOST_BATCHES = 100_000
_MOST_BUFFERS = 1_000  # of a batch
_MOST_ENTRIES = 128  # of fields, those in lists included, and of metadata
_MOST_TEXT = 1 << 20  # bytes of all names and metadata; a shard's have 2 kB


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

    def tables(self, field: int) -> Iterator[_Table]:
        """The tables that a vector refers to."""
        for place in self.vector(field, 4):
            yield _Table(self.data, place + _number("<I", self.data, place))

    def length(self, field: int) -> int:
        """The length of a text or vector; 0 where there is none."""
        start = self.follow(field)
        return 0 if start is None else _number("<I", self.data, start)


def check_schema(data: memoryview) -> None:
    """Refuse an Arrow file whose schema takes more than one of ours can: Arrow makes a copy of every
    name and entry of metadata that the file refers to, though many may be one and the same.

    Raises:
        ValueError: it has too many, or is no Arrow file, or its index leads out of it.
    """
    footer = _footer(data)
    place = footer.follow(1)
    if place is None or any(footer.vector(2, 24)) or any(footer.vector(4, 4)):
        raise ValueError("its footer has no schema, or more than that")
    schema = _Table(data, place)
    waiting = list(islice(schema.tables(1), _MOST_ENTRIES + 1))
    entries = list(islice(schema.tables(2), _MOST_ENTRIES + 1))
    texts = fields = 0
    while waiting and fields <= _MOST_ENTRIES:
        field = waiting.pop()
        fields += 1
        texts += field.length(0)
        waiting += islice(field.tables(5), _MOST_ENTRIES + 1)
        entries += islice(field.tables(6), _MOST_ENTRIES + 1)
    texts += sum(entry.length(0) + entry.length(1) for entry in entries[: _MOST_ENTRIES + 1])
    if max(fields, len(entries)) > _MOST_ENTRIES or texts > _MOST_TEXT:
        raise ValueError("its schema has more names and metadata than a shard's")


def _footer(data: memoryview) -> _Table:
    if bytes(data[-len(_END) :]) != _END:
        raise ValueError("it does not end like an Arrow file")
    length = _number("<i", data, len(data) - len(_END) - 4)
    start = len(data) - len(_END) - 4 - length
    return _Table(data, start + _number("<I", data, start))


def batch_sizes(data: memoryview) -> Iterator[BatchSize]:
    """Sizes of the record batches of an Arrow file, in order; ``data`` is all of it.

    Raises:
        ValueError: it is no Arrow file, or its index leads out of it, or a batch has metadata.
    """
    footer = _footer(data)
    for index, block in enumerate(footer.vector(3, 24)):
        if index >= _MOST_BATCHES:
            raise ValueError(f"it names more than {_MOST_BATCHES} batches")
        at = _number("<q", data, block)
        body = at + _number("<i", data, block + 8)
        at += 8 if _number("<I", data, at) == _CONTINUES else 4
        message = _Table(data, at + _number("<I", data, at))
        if any(message.vector(4, 4)):
            raise ValueError("a batch has metadata of its own")
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

"""What this process has spent on requests to buckets: seconds, and bytes either way."""

from __future__ import annotations

import threading
from typing import NamedTuple


class Transfer(NamedTuple):
    """Seconds that requests took, waits between tries among them, and bytes sent and received.

    Requests of several threads at once count each.
    """

    seconds: float = 0.0
    bytes: int = 0

    def since(self, before: Transfer) -> Transfer:
        return Transfer(self.seconds - before.seconds, self.bytes - before.bytes)


_by_thread: dict[int, Transfer] = {}  # each writes its own: no lock that a fork might copy


def count(seconds: float = 0.0, size: int = 0) -> None:
    """Add seconds, or bytes, to what this process has spent."""
    me = threading.get_ident()
    before = _by_thread.get(me, Transfer())
    _by_thread[me] = Transfer(before.seconds + seconds, before.bytes + size)


def transferred() -> Transfer:
    """What this process has spent so far."""
    spent = list(_by_thread.values())
    return Transfer(sum(one.seconds for one in spent), sum(one.bytes for one in spent))

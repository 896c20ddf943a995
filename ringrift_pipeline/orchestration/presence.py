"""Which services, and which `ringrift loop`, are up on a data root: each holds a lock on a small
file as long as it lives.

The kernel drops the lock with the process, so that a file left by a crash is not believed.
Standard library and store only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ringrift_pipeline.orchestration.places import data_folder, services_folder
from ringrift_pipeline.store import OutsideError
from ringrift_pipeline.store.layout import Layout

LARGEST = 1 << 16  # bytes of such a file


@dataclass(frozen=True)
class Presence:
    """A service that is up. ``started`` is in seconds since the epoch; only a web server has an
    address.
    """

    kind: str
    pid: int
    started: float
    host: str = ""
    port: int = 0


def announce(kind: str, arguments: Sequence[str]) -> None:
    """Say that this process is the service ``kind``, until it ends."""
    named = dict(zip(arguments, arguments[1:], strict=False))
    host, port = named.get("--host", ""), int(named.get("--port", 0))
    _until_it_ends.enter_context(announced(kind, data_folder(), host, port))


_until_it_ends = contextlib.ExitStack()


@contextlib.contextmanager
def announced(kind: str, data: Path, host: str = "", port: int = 0) -> Iterator[None]:
    """Say that this process is the service ``kind`` of a data root, as long as the body takes."""
    path = services_folder(data) / (f"{kind}-{port}.json" if port else f"{kind}.json")
    descriptor = None
    # no lock, no file, or a link to elsewhere: a service works without
    with contextlib.suppress(OSError, OutsideError):
        Layout(data).inside(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        state = Presence(kind, os.getpid(), time.time(), host, port)
        os.write(descriptor, json.dumps(asdict(state)).encode())
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Hold the file; somebody who looks at it has it for a moment. Raises BlockingIOError."""
    for attempt in range(20):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == 19:
                raise
            time.sleep(0.05)


def present(data: Path) -> list[Presence]:
    """The services that are up, by kind."""
    found = []
    for path in sorted(services_folder(data).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            # no link is followed, and a pipe is not waited for
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _is_locked(descriptor):
                    found.append(Presence(**json.loads(os.read(descriptor, LARGEST))))
            finally:
                os.close(descriptor)
    return found


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False

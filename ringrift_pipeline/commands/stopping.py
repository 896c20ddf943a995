"""Ctrl-C and SIGTERM: asked once, a command stops where it can go on later; asked again, at once.

The first only sets a flag: an exception raised by a signal handler would come up anywhere, also in
the middle of a save or where a library drops it. The second leaves without unwinding anything, which
is what a kill does, and nothing is ever half written after one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOPPED = 130  # exit code
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stoppable(at_once: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """``with stoppable() as should_stop:`` around work that asks ``should_stop()`` now and then.

    Args:
        at_once: called at the second signal, just before the process leaves; brief.

    Raises:
        KeyboardInterrupt: the work has stopped because it was asked to.
    """
    from ringrift_pipeline.selfplay.stopping import Interrupted

    asked: list[int] = []  # an Event that a handler sets could wait for its own lock

    def handler(number: int, _: FrameType | None) -> None:
        if asked:
            _leave(at_once)
        asked.append(number)
        _tell("stopping; what is finished stays (once more, and it ends at once)")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals are not this thread's
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield lambda: bool(asked)
    except Interrupted as stop:
        if not asked:
            raise
        _tell(str(stop))
        raise KeyboardInterrupt from None
    finally:
        for number, known in before.items():
            signal.signal(number, known)


def _leave(at_once: Callable[[], object]) -> NoReturn:
    try:
        with contextlib.suppress(Exception):
            at_once()
        _tell("stopped at once; what was under way is dropped, what is finished stays")
    finally:
        os._exit(STOPPED)


def _tell(text: str) -> None:
    """A line on standard error: not through a buffer that the signal may have come in the midst of."""
    restored = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
    with contextlib.suppress(OSError):
        os.write(2, f"{restored}ringrift: {text}\n".encode())

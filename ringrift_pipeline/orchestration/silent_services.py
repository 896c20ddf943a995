"""Services that hang: a daemon or a code server that was stopped, or that no thread runs in any more,
ends by nobody's hand but that of whoever started it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from dagster import DagsterInstance

SILENCE = 600.0  # seconds without a sign of life; a daemon gives one every half minute
QUIET = 60.0  # seconds after which it may hang: whoever waits for its work begins to wait anew
LOOK = 10.0  # seconds between two looks
# Seconds at most that count between two looks: a computer at rest is no reason to kill.
STRIDE = 20.0

Sign = Callable[[], object]


class Silence:
    """For how long nothing new has been heard of something.

    Args:
        sign: its newest sign of life, None if it has given none; asked every `LOOK` seconds.
    """

    def __init__(self, sign: Sign) -> None:
        self._sign = sign
        self._heard: object = None
        self._seconds = 0.0
        self._looked = time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long it has been silent. Ask often."""
        now = time.monotonic()
        if now - self._looked >= LOOK:
            passed, self._looked = min(now - self._looked, STRIDE), now
            heard = self._sign()
            if heard is None or heard == self._heard:
                self._seconds += passed
            else:
                self._heard, self._seconds = heard, 0.0
        return self._seconds

    @property
    def too_long(self) -> bool:
        """Has it been silent for more than `SILENCE` seconds? Ask often."""
        return self.seconds > SILENCE


class Answers:
    """How often something has answered, asked in a thread, as it may never do so.

    Args:
        ask: returns when it has; raises if it does not.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._count = 0
        self._asking: threading.Thread | None = None

    def __call__(self) -> object:
        """The number of answers so far; asks once more, unless an answer is still waited for."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._once, daemon=True, name="ringrift-ping")
            self._asking.start()
        return self._count

    def _once(self) -> None:
        with contextlib.suppress(Exception):
            self._ask()
            self._count += 1


class Heartbeats(Answers):
    """The newest heartbeat that any part of the daemon has left in the instance.

    While the instance's database does not answer nothing is known of the daemon, which is no silence.
    """

    def __init__(self, instance: DagsterInstance) -> None:
        super().__init__(self._look)
        self._instance = instance
        self._newest: object = None

    def __call__(self) -> object:
        waiting = self._asking is not None and self._asking.is_alive()
        super().__call__()
        return object() if waiting else self._newest

    def _look(self) -> None:
        newest: object = object()  # if it does not answer
        try:
            beats = self._instance.get_daemon_heartbeats().values()
            newest = max((one.timestamp for one in beats), default=None)
        finally:
            self._newest = newest

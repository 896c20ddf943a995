"""What the steps of a run ask of Redis, and for how long it has not answered: once for all of them."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ringrift_pipeline.orchestration.celery_settings import place_of, without_secrets

Answer = TypeVar("Answer")

REST = 60.0  # seconds at most that count between two requests: a computer at rest proves nothing
TEXT = 300  # characters of an error that are repeated
PAGE = 100  # tasks of a queue that are read at once
LONGEST = 2000  # tasks of a queue that are read at all, some kB each


class UnansweredError(Exception):
    """Redis does not answer, or has not when it was last asked. Says what came in place of an answer,
    which may be one that only a person can mend: a wrong password, no more memory.

    Attributes:
        away: for how many seconds.
    """

    def __init__(self, place: str, away: float, why: str) -> None:
        super().__init__(f"Redis at {place} has not answered for {away:.0f} s ({why})")
        self.away = away


class Requests:
    """Requests of one kind, from all steps of a run.

    A host that is gone costs seconds a request, in the one thread that also reads events and hears that
    the run is cancelled. So after one that is not answered all others wait for the next look.

    Attributes:
        answered: whether one ever was.

    Args:
        address: of the Redis; of it only host and port are ever repeated.
    """

    def __init__(self, address: str) -> None:
        self._address, self._place = address, place_of(address)
        self._why = ""
        self._away = 0.0
        self._missed: float | None = None  # when the last one failed, unless one was answered since
        self._wait = False
        self.answered = False  # ever

    def begin_look(self) -> None:
        """The next request is made again."""
        self._wait = False

    def make(self, request: Callable[[], Answer]) -> Answer:
        """What is answered. Raises UnansweredError."""
        if self._wait:
            raise UnansweredError(self._place, self._away, self._why)
        began = time.monotonic()
        try:
            answer = request()
        except Exception as error:  # of Redis, its client, Celery or the network
            now, since = time.monotonic(), began if self._missed is None else self._missed
            self._away += min(now - since, REST)
            self._missed, self._wait = now, True
            self._why = self._told(error)
            logging.getLogger(__name__).warning("Redis does not answer: %s", self._why)
            raise UnansweredError(self._place, self._away, self._why) from None
        self._away, self._missed, self.answered = 0.0, None, True
        return answer

    def _told(self, error: Exception) -> str:
        text = without_secrets(" ".join(str(error).split()), self._address)
        return f"{type(error).__name__}: {text[:TEXT]}" if text else type(error).__name__


def tasks_in(channel: Any, queue: str) -> set[str] | None:
    """Ids of the tasks that wait in a queue; None, and nothing is read, if they are too many.

    Read from the end that new ones are put in at: none that waits all the time is passed over. What
    somebody else has put there is.
    """
    found: set[str] = set()
    with channel.conn_or_acquire() as client:
        if client.llen(queue) > LONGEST:
            return None
        for begin in range(0, 2 * LONGEST, PAGE):  # it may grow meanwhile
            page = client.lrange(queue, begin, begin + PAGE - 1)
            for message in page:
                with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
                    found.add(str(json.loads(message)["headers"]["id"]))
            if len(page) < PAGE:
                return found
    return None

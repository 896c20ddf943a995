"""Alerts on their way: written down first, then passed on, then kept as told.

One JSON file an alert under ``<data>/dagster/alerts/``, in ``waiting``, ``told`` or ``refused``. A
sensor that finds something puts it here and moves its cursor; what could not be passed on waits
for the next tick. An alert that was put once is not put again, whoever asks: after a restart, with
a lost cursor, from two processes at once. The one thing that can tell twice is a crash between the
notifier's yes and the file's move; the second has the same ``id``. A file that cannot be moved is
left where it is, and holds up no other: an alert is then told once by each process.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ringrift_pipeline.orchestration.notify import (
    Alert,
    LogNotifier,
    Notifier,
    NotifyError,
    WebhookUrlError,
    alert_id,
)
from ringrift_pipeline.orchestration.places import home_folder
from ringrift_pipeline.store import LockedError, Store, read_bounded, write_json_atomic
from ringrift_pipeline.store.atomic import ensure_folder, fsync_path
from ringrift_pipeline.store.locks import folder_lock

WAITING, TOLD, REFUSED = "waiting", "told", "refused"
STATES = (WAITING, TOLD, REFUSED)
LOCK = "alerts"
LARGEST = 1 << 20  # bytes of an alert
DEEPEST = 100  # lists and mappings in it, one within the other; of ours some four
# Seconds of a tick after which no more is begun to be passed on; one takes up to `notify.IN_ALL`.
PATIENCE = 20.0

_logged: set[str] = set()  # ids of what this process logged while the web hook could not be used
_stuck: dict[Path, str] = {}  # what this process has done with and could not move, and where to


@dataclass(frozen=True)
class AlertState:
    """An alert in the outbox: ``waiting``, ``told`` or ``refused`` since ``since`` (seconds since
    the epoch).
    """

    id: str
    state: str
    since: float
    kind: str
    title: str


def deadline() -> float:
    """When a tick that begins now begins to pass on no more alerts: Dagster gives up on it after 60 s,
    and does not know what it has done.
    """
    return time.monotonic() + PATIENCE


class Outbox:
    """The alerts of one data root. Safe to use from several processes at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.folder = home_folder(store.root) / "alerts"

    def put(self, alert: Alert) -> bool:
        """Keep an alert until it is told. False: it was put before, and nothing is done.

        Raises OSError, SerializationError for details that JSON cannot hold.
        """
        for state in STATES:
            ensure_folder(self.folder / state)
        with folder_lock(self.folder):  # against a move from waiting to told in between
            if self.holds(alert.kind, alert.key):
                return False
            write_json_atomic(self._path(WAITING, alert.id), asdict(alert))
            return True

    def holds(self, kind: str, key: str) -> bool:
        """Was an alert of this kind and key put before?"""
        identity = alert_id(kind, key)
        return any(self._path(state, identity).exists() for state in STATES)

    def deliver(
        self,
        notifier: Notifier,
        say: Callable[[str], object] = lambda _: None,
        until: float | None = None,
    ) -> list[Alert]:
        """Pass on what waits, oldest first, and return what was passed on.

        Ends at the first alert that is not taken over, for the next would hardly fare better; one
        that is refused for good is laid aside. Where the web hook's address cannot be used all of
        them wait, and are logged meanwhile. While another process is at it, does nothing.

        Args:
            say: is told, in one line, of everything that was or was not passed on.
            until: as `deadline` says, for a tick that asks more than once; the default begins now.
        """
        told: list[Alert] = []
        if not any(self._files(WAITING)):
            return told
        until = deadline() if until is None else until
        try:
            with self._store.lock(None, LOCK):
                alerts = self._waiting(say)
                for alert in alerts:
                    path = self._path(WAITING, alert.id)
                    if path in _stuck:
                        self._settle(path, _stuck[path], say)
                        continue
                    if time.monotonic() > until:
                        say("more alerts wait for the next tick")
                        break
                    try:
                        notifier.notify(alert)
                    except WebhookUrlError as error:
                        say(f"not told, kept: {error}")
                        _log(alerts)
                        break
                    except NotifyError as error:
                        say(f"not told, {'refused' if error.refused else 'kept'}: {error}")
                        if not error.refused:
                            break
                        self._settle(path, REFUSED, say)
                        continue
                    say(f"told: {alert.title}")
                    told.append(alert)
                    self._settle(path, TOLD, say)
        except LockedError:
            say("another process is passing alerts on")
        return told

    def waiting(self) -> int:
        """How many alerts nobody has been told of yet."""
        return sum(1 for _ in self._files(WAITING))

    def recent(self, seconds: float, most: int) -> list[AlertState]:
        """The alerts that were put, told or refused within so many seconds, newest first, at most
        ``most`` of them.
        """
        found = []
        for state in STATES:
            for path in self._files(state):
                with contextlib.suppress(OSError):  # moved meanwhile
                    since = path.lstat().st_mtime
                    if since > time.time() - seconds:
                        found.append((since, state, path))
        newest: dict[str, AlertState] = {}
        for since, state, path in sorted(found, reverse=True):
            if len(newest) == most:
                break
            with contextlib.suppress(OSError, ValueError):  # moved, or no alert
                alert = read_alert(path)
                here = AlertState(alert.id, state, since, alert.kind, alert.title)
                newest.setdefault(alert.id, here)
        return [*newest.values()]

    def _path(self, state: str, identity: str) -> Path:
        return self.folder / state / f"{identity}.json"

    def _files(self, state: str) -> Iterator[Path]:
        return (self.folder / state).glob("*.json")

    def _waiting(self, say: Callable[[str], object]) -> list[Alert]:
        found = []
        for path in self._files(WAITING):
            try:
                alert = read_alert(path)
            except ValueError as error:  # not ours, or of a version to come
                if self._move(path, REFUSED, say):
                    say(f"{path} is no alert ({error}) and was laid aside")
            except FileNotFoundError:  # told by another process
                continue
            except OSError as error:  # a folder, a socket: the others are told
                say(f"{path} is no alert ({error})")
            else:
                found.append(alert)
        return sorted(found, key=lambda alert: (alert.time, alert.id))

    def _settle(self, path: Path, state: str, say: Callable[[str], object]) -> None:
        """Move an alert that was told of or refused, and remember it if it cannot be."""
        if self._move(path, state, say):
            _stuck.pop(path, None)
        else:
            _stuck[path] = state

    def _move(self, path: Path, state: str, say: Callable[[str], object]) -> bool:
        """Whether a file that waits could be moved to ``state``; ``say`` is told if not."""
        target = self.folder / state / path.name
        try:
            with folder_lock(self.folder):
                ensure_folder(target.parent)  # a copy of a data root may lack those that were empty
                os.replace(path, target)
                fsync_path(target.parent)
                os.utime(target, follow_symlinks=False)  # when it was told
        except OSError as error:
            say(f"{path} cannot be moved to {target.parent}: {error}")
            return False
        return True


def _log(alerts: list[Alert]) -> None:
    """Log each alert once, however often the tick meets it."""
    for alert in alerts:
        if alert.id not in _logged:
            _logged.add(alert.id)
            LogNotifier().notify(alert)


def read_alert(path: Path) -> Alert:
    """The alert in a file. Raises ValueError where there is none.

    One whose file has another's name would be told again and again.
    """
    if path.is_symlink():
        raise ValueError("it is a link")
    try:
        content = json.loads(read_bounded(path, LARGEST))
        if _is_deeper(content, DEEPEST):  # whoever passes it on would go as deep
            raise ValueError("it is nested too deeply")
        alert = Alert(**content)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    for name in ("kind", "key", "title", "text", "time"):
        if not isinstance(getattr(alert, name), str):
            raise ValueError(f"its {name} is no text")
    if alert.id != path.stem:
        raise ValueError("its file has another alert's name")
    json.dumps(alert.payload(), allow_nan=False)
    return alert


def _is_deeper(value: object, most: int) -> bool:
    """Are there more than `most` lists and mappings, one within the other, in a parsed value?"""
    if isinstance(value, dict):
        value = [*value.values()]
    return isinstance(value, list) and (
        most == 0 or any(_is_deeper(item, most - 1) for item in value)
    )

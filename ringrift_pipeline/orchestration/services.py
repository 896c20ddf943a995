"""Processes beside the command: started, waited for, started again where they have ended, stopped in
whatever state they are in. The web server and the page of recorded games are here; the daemon and
the code server, which go together, in `backend`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from ringrift_pipeline.orchestration.instance import environment
from ringrift_pipeline.orchestration.names import MODULE
from ringrift_pipeline.orchestration.places import (
    HERE,
    OWNER,
    SERVICE,
    TOKEN_VARIABLE,
    services_folder,
)

# How long each way of asking is given, seconds; the last one cannot be refused.
PATIENCE = ((signal.SIGINT, 12.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

LOOK_BACK = 1 << 16  # bytes of a log that are looked at
LARGEST_LOG = 10_000_000  # bytes of a log; as many of what came before are kept beside it
CUT_AGAIN = 600.0  # seconds after which a log is looked at again that could not be cut
START_PATIENCE = 120.0  # seconds a server may take to answer
# A service that has ended is started again, but for one that does so four times in a row before it has
# been there for a quarter of a minute: it cannot work here, where one that is killed now and then can.
MOST_ENDS = 4
LIVED = 15.0  # seconds

Stopping = Callable[[], bool]


class ServiceError(RuntimeError):
    """A service ended by itself, or does not answer; the message has its last lines."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def _appended(log: Path) -> BinaryIO:
    """A log to append to, made if it is not there. Raises OSError, and ServiceError for what is no plain
    file: a link could lead to any file of this user's.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return open(os.open(log, flags, 0o666), "ab")
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise ServiceError(f"{log} is a link, a pipe or a folder, and no log: remove it") from None


def _cut(log: Path) -> None:
    """Where a log has more than `LARGEST_LOG` bytes, keep the newest of them as ``<kind>.log.1``, in the
    place of the one before, and begin it anew. Raises OSError: the log then stays as it is.

    It is copied and emptied, not renamed, as its writers have it open, to append: they go on at its new
    beginning. No link is followed.
    """
    if not log.is_file() or log.lstat().st_size <= LARGEST_LOG:
        return
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(log, flags), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two may look after one log
        size = file.seek(0, os.SEEK_END)
        if size > LARGEST_LOG:
            file.seek(size - LARGEST_LOG)
            before = log.with_name(f"{log.name}.1")
            before.unlink(missing_ok=True)
            with open(os.open(before, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as kept:
                kept.write(file.read(LARGEST_LOG))
            rest = file.read()  # what was written meanwhile
            file.truncate(0)
            file.write(rest)


class Service:
    """One process (and all it starts) in a session of its own, its output in a log file.

    Args:
        more: variables added to its environment.
        inherits: file descriptors that it takes over.

    Raises ServiceError: its log is no plain file; OSError: it cannot be written.

    Attributes:
        again: whether `check` starts it anew where it has ended.
    """

    def __init__(
        self,
        data: Path,
        kind: str,
        *arguments: str,
        more: Mapping[str, str] | None = None,
        inherits: tuple[int, ...] = (),
    ) -> None:
        self.kind = kind
        self.again = False
        self.log = services_folder(data) / f"{kind}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._command = [sys.executable, "-P", "-m", SERVICE, kind, *arguments]
        self._environment = {**environment(data), **(more or {}), OWNER: str(os.getpid())}
        self._inherits = inherits
        self._ends = 0
        self._cut_from = 0.0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._started = time.monotonic()
        self.cut_log()
        with _appended(self.log) as output:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self._inherits,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Has the process ended?"""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raises ServiceError if the process has ended, unless it was killed or is one to start ``again``,
        and has not ended `MOST_ENDS` times in a row within `LIVED`; its log says that it was started again.
        To be called every few seconds, which also bounds its log.
        """
        code = self._process.poll()
        if code is None:
            self.cut_log()
            return
        self._ends = self._ends + 1 if time.monotonic() - self._started < LIVED else 1
        if (not self.again and code >= 0) or self._ends >= MOST_ENDS:
            raise ServiceError(
                f"the service {self.kind} ended with code {code}; the end of {self.log}:\n"
                + "\n".join(self.last_lines())
            )
        self._end_group()
        self.note(f"The {self.kind} ended with code {code} and is started again.")
        self._process = self._start()

    def wait_for(self, answers: Callable[[], object], stopping: Stopping = never) -> None:
        """Until ``answers`` no longer raises.

        Raises:
            ServiceError: the process ended, or does not answer for `START_PATIENCE`.
            KeyboardInterrupt: ``stopping`` says so.
        """
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline:
            self.check()
            if stopping():
                raise KeyboardInterrupt
            with contextlib.suppress(Exception):  # not listening yet
                answers()
                return
            time.sleep(0.1)
        raise ServiceError(f"the service {self.kind} did not answer for {START_PATIENCE:.0f} s")

    def cut_log(self) -> None:
        """Bound its log, by `LARGEST_LOG` bytes here and in the one before."""
        if time.monotonic() >= self._cut_from:
            try:
                _cut(self.log)
            except OSError:  # on a full disk each attempt would write what room there is
                self._cut_from = time.monotonic() + CUT_AGAIN

    def note(self, text: str) -> None:
        """Add a line to its log. Raises OSError, ServiceError: as `Service` itself."""
        with _appended(self.log) as log:
            log.write(f"{text}\n".encode())

    def last_lines(self, count: int = 12) -> list[str]:
        """The end of the log."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOOK_BACK))
            return log.read(LOOK_BACK).decode("utf-8", "replace").splitlines()[-count:]
        return []

    def stop(self) -> None:
        """End the process: ask, insist, kill; then whatever is left of its group."""
        for number, patience in PATIENCE:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self.pid, number)
                else:
                    self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=patience)
        self._end_group()

    def _end_group(self) -> None:
        """End what the process has started and left behind: run workers, code servers."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGTERM)
            time.sleep(0.5)
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process and all it has started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until the process that was killed has ended, for some seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PATIENCE[-1][1])


def start_webserver(
    data: Path,
    host: str,
    port: int,
    workspace: tuple[str, ...] = ("-m", MODULE),
    stopping: Stopping = never,
    token: str | None = None,
) -> Service:
    """The web UI on this data root, once it answers.

    Args:
        workspace: names a code server that is there already.
        token: what every browser must bring; a host other than the loopback needs one.

    Raises:
        ServiceError, KeyboardInterrupt: as `Service.wait_for`.
    """
    place = ("--host", host, "--port", str(port))
    secret = {TOKEN_VARIABLE: token} if token is not None else {}
    service = Service(data, "webserver", *workspace, *place, more=secret)
    url = f"http://{HERE if host == '0.0.0.0' else host}:{port}/server_info"
    try:
        service.wait_for(lambda: _ask(url), stopping)
    except BaseException:
        service.stop()
        raise
    service.again = True
    return service


def _ask(url: str) -> None:
    """Ask for a page; that it is refused without a token is an answer as well. A proxy's is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(urllib.error.HTTPError):
        opener.open(url, timeout=5.0).close()


def start_play(data: Path, port: int) -> Service:
    """The page of ``ringrift play`` on this data root, for this machine alone. Raises OSError if
    the port cannot be had.
    """
    with socket.create_server((HERE, port)) as listening:  # from here on visitors can come
        place = ("--host", HERE, "--port", str(port), "--socket", str(listening.fileno()))
        return Service(data, "play", *place, inherits=(listening.fileno(),))

"""Starting and stopping the daemon, the web server and the page of recorded games, whatever state
they are in.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from dagster import DagsterInstance

from ringrift_pipeline.orchestration.clock import TurnedBack, forget_the_future
from ringrift_pipeline.orchestration.instance import (
    cancel_active,
    environment,
    report_cancelled,
    sweep_lost_runs,
)
from ringrift_pipeline.orchestration.names import MODULE
from ringrift_pipeline.orchestration.places import (
    CODE,
    HERE,
    OWNER,
    SERVICE,
    TOKEN_VARIABLE,
    progress_folder,
    services_folder,
)
from ringrift_pipeline.orchestration.silent_services import Answers, Heartbeats, Silence
from ringrift_pipeline.orchestration.silent_steps import SilentSteps
from ringrift_pipeline.store import write_bytes_atomic

# How long each way of asking is given, seconds; the last one cannot be refused.
PATIENCE = ((signal.SIGINT, 12.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

LOOK_BACK = 1 << 16  # bytes of a log that are looked at
# Seconds between two looks for runs that were lost and are to be retried; Dagster's own are 5.
_DAEMON = {"DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": "1"}

START_PATIENCE = 120.0  # seconds a server may take to answer
# A service that has ended is started again, but for one that does so four times in a row before it has
# been there for a quarter of a minute: it cannot work here, where one that is killed now and then can.
MOST_ENDS = 4
LIVED = 15.0  # seconds

Stopping = Callable[[], bool]


class ServiceError(RuntimeError):
    """A service ended by itself, or does not answer; the message has its last lines."""


def _never() -> bool:
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
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._started = time.monotonic()
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
        """
        code = self._process.poll()
        if code is None:
            return
        self._ends = self._ends + 1 if time.monotonic() - self._started < LIVED else 1
        if (not self.again and code >= 0) or self._ends >= MOST_ENDS:
            raise ServiceError(
                f"the service {self.kind} ended with code {code}; the end of {self.log}:\n"
                + "\n".join(self.last_lines())
            )
        self._end_group()
        with _appended(self.log) as output:
            output.write(f"The {self.kind} ended with code {code} and is started again.\n".encode())
        self._process = self._start()

    def wait_for(self, answers: Callable[[], object], stopping: Stopping = _never) -> None:
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


class Backend:
    """The daemon and the code server it works with, started and stopped together.

    A code server of our own: one that the daemon manages is replaced every minute by a fresh one,
    which costs seconds of a core each time. Both load at once; the daemon begins once there is a
    workspace file, which is written when the code server answers.

    Args:
        instance: the open instance of ``data``, whose lock the caller holds.
        stopping: asked while the servers start; KeyboardInterrupt is raised if it says so.
        more: variables added to the environment of the servers and the runs.
        module: what the code server serves.
    """

    def __init__(
        self,
        data: Path,
        instance: DagsterInstance,
        stopping: Stopping = _never,
        more: Mapping[str, str] | None = None,
        module: str = MODULE,
    ) -> None:
        more = more or {}
        # The path of a socket has at most about a hundred characters; a data root may have more.
        self._folder = Path(tempfile.mkdtemp(prefix="ringrift-"))
        self._data, self._more, self._stopping = data, more, stopping
        self._instance = instance
        self._turned_back = TurnedBack()
        self.socket = self._folder / "code.sock"
        self._file = self._folder / "workspace.yaml"
        self._aside = self._folder / "workspace.aside"
        self._module = module
        self.workspace = ("-w", str(self._file))
        self.services: list[Service] = []
        try:
            arguments = ("api", "grpc", "--socket", str(self.socket), "-m", module, "-d", str(CODE))
            code_server = Service(data, "code-server", *arguments, more=more)
            self.services.append(code_server)
            self.services.append(self._start_daemon())
            self._begin()
            code_server.again = True
        except BaseException:
            self.stop()
            raise

    def _ping(self) -> None:
        from dagster._grpc.client import DagsterGrpcClient

        DagsterGrpcClient(socket=str(self.socket)).ping("")

    def _begin(self) -> None:
        """Once the code server answers, let the daemon begin."""
        code_server = self.services[0]
        code_server.wait_for(self._ping, self._stopping)
        self._write_workspace()
        self._steps = SilentSteps(self._data, code_server.pid)
        self._listen()

    def _write_workspace(self) -> None:
        """Where the code server is, for those that read it when they start."""
        with contextlib.suppress(FileNotFoundError):
            return os.replace(self._aside, self._file)
        server = {"grpc_server": {"socket": str(self.socket), "location_name": self._module}}
        content = json.dumps({"load_from": [server]})  # YAML as well
        write_bytes_atomic(self._file, content.encode())

    def _make_folder(self) -> None:
        """The folder anew, where it is gone. Raises ServiceError if it is somebody else's by now."""
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        about = self._folder.lstat()
        if about.st_uid != os.geteuid() or not stat.S_ISDIR(about.st_mode):
            raise ServiceError(
                f"{self._folder} was removed, and is somebody else's now: begin again"
            )

    def _listen(self) -> None:
        """From now on, to the two that run now."""
        self._silences = (Silence(Answers(self._ping)), Silence(Heartbeats(self._instance)))

    def _start_daemon(self) -> Service:
        more = {**_DAEMON, **self._more}
        daemon = Service(self._data, "daemon", "run", *self.workspace, more=more)
        daemon.again = True  # runs go on meanwhile: they are the code server's
        return daemon

    def check(self) -> None:
        """Put right what the two cannot: kill steps that hang, start the daemon again if it has
        ended or hangs, or if the clock was turned back, and both if the code server has ended or
        hangs. To be called every few seconds.

        Raises:
            ServiceError: one of them ends again and again, or does not answer.
            KeyboardInterrupt: ``stopping`` says so while the code server starts.
        """
        for service, silence in zip(self.services, self._silences, strict=True):
            if silence.too_long:
                self._note(f"killed the {service.kind}, pid {service.pid}: it hung")
                service.kill()
                service.wait()
        # What tidies up temporary folders may take the socket, by which nobody comes any more.
        if self.services[0].has_ended or not self.socket.exists():
            self._start_over()
        if not self._file.exists():
            self._write_workspace()
        if self.services[1].has_ended:
            self.services[1].check()
            self._listen()
        for step in self._steps.look():
            self._note(f"killed step {step.step} of run {step.run_id}, pid {step.pid}: it hung")
        if self._turned_back():
            self._note("the clock was turned back: the daemon is started again")
            self.services[1].stop()
            forget_the_future(self._instance)
            self.services[1] = self._start_daemon()
            self._listen()

    def _start_over(self) -> None:
        """A new code server and a daemon on it. The old one's runs are lost, and retried: what is
        left of them ends first, at once, so that none reports itself interrupted.
        """
        code_server, daemon = self.services
        code_server.kill()
        daemon.kill()  # or it would note meanwhile that it does not retry them
        daemon.wait()
        self._make_folder()
        self.socket.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self._file, self._aside)  # a full disk has no room for another
        code_server.wait()
        code_server.check()
        self.services[1] = self._start_daemon()
        sweep_lost_runs(self._instance)
        shutil.rmtree(progress_folder(self._data), ignore_errors=True)
        self._begin()
        self._note("the code server had ended: both are started again, lost runs are retried")

    def _note(self, text: str) -> None:
        """A line in the daemon's log, where people look for what became of their runs."""
        with contextlib.suppress(OSError, ServiceError), _appended(self.services[1].log) as log:
            log.write(f"ringrift: {text}\n".encode())

    def kill(self) -> None:
        """End both at once; what they were doing is found lost when the next daemon starts."""
        for service in reversed(self.services):
            service.kill()

    def stop(self) -> None:
        """End both and cancel what runs, whatever goes wrong on the way.

        The daemon first, so that nothing starts any more; then the runs, whose workers only the
        code server can ask; then that.
        """
        with contextlib.ExitStack() as last_first:
            last_first.callback(shutil.rmtree, self._folder, ignore_errors=True)
            last_first.callback(report_cancelled, self._instance)
            for service in self.services[:1]:
                last_first.callback(service.stop)
            last_first.callback(cancel_active, self._instance)
            for service in self.services[1:]:
                last_first.callback(service.stop)


def start_webserver(
    data: Path,
    host: str,
    port: int,
    workspace: tuple[str, ...] = ("-m", MODULE),
    stopping: Stopping = _never,
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

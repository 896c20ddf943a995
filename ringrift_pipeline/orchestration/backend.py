"""The daemon and the code server, which run what is asked for: started together, kept up, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from dagster import DagsterInstance

from ringrift_pipeline.orchestration.clock import TurnedBack, forget_the_future
from ringrift_pipeline.orchestration.instance import (
    cancel_active,
    report_cancelled,
    report_left,
    sweep_lost_runs,
)
from ringrift_pipeline.orchestration.killed_steps import report_hung
from ringrift_pipeline.orchestration.names import MODULE
from ringrift_pipeline.orchestration.one_daemon import is_ours
from ringrift_pipeline.orchestration.places import CODE, progress_folder
from ringrift_pipeline.orchestration.progress import StepProgress
from ringrift_pipeline.orchestration.services import Service, ServiceError, Stopping, never
from ringrift_pipeline.orchestration.silent_services import QUIET, Answers, Heartbeats, Silence
from ringrift_pipeline.orchestration.silent_steps import SilentSteps
from ringrift_pipeline.store import write_bytes_atomic

# Seconds between two looks for runs that were lost and are to be retried; Dagster's own are 5.
_DAEMON = {"DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": "1"}


class Backend:
    """The daemon and the code server it works with, started and stopped together.

    A code server of our own: one that the daemon manages is replaced every minute by a fresh one,
    which costs seconds of a core each time. Both load at once, from here on; the daemon does nothing
    until `begin`, which gives it a workspace file.

    Args:
        instance: the open instance of ``data``, whose lock the caller holds.
        stopping: asked while the servers start; KeyboardInterrupt is raised if it says so.
        more: variables added to the environment of the servers and the runs.
        module: what the code server serves.

    Attributes:
        well_since: since when (`time.monotonic`) both give signs of life, from `begin` on. Whoever waits
            for what they do waits from then: one that hangs is started again only after minutes.
    """

    def __init__(
        self,
        data: Path,
        instance: DagsterInstance,
        stopping: Stopping = never,
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
        except BaseException:
            self.stop()
            raise

    def _ping(self) -> None:
        from dagster._grpc.client import DagsterGrpcClient

        DagsterGrpcClient(socket=str(self.socket)).ping("")

    def begin(self) -> None:
        """Once the code server answers, let the daemon begin.

        Raises:
            ServiceError: the code server ended, or does not answer.
            KeyboardInterrupt: ``stopping`` says so.
        """
        code_server = self.services[0]
        code_server.wait_for(self._ping, self._stopping)
        self._write_workspace()
        self._steps = SilentSteps(self._data, code_server.pid)
        self._listen()
        code_server.again = True

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
        self.well_since = time.monotonic()

    def _start_daemon(self) -> Service:
        more = {**_DAEMON, **self._more}
        daemon = Service(self._data, "daemon", "run", *self.workspace, more=more)
        daemon.again = True  # runs go on meanwhile: they are the code server's
        return daemon

    def check(self) -> None:
        """Put right what the two cannot: kill steps that hang, start the daemon again if it has
        ended or hangs, or if the clock was turned back, and both if the code server has ended or
        hangs; bound their logs. To be called every few seconds, after `begin`.

        Raises:
            ServiceError: one of them ends again and again, or does not answer.
            KeyboardInterrupt: ``stopping`` says so while the code server starts.
        """
        for service, silence in zip(self.services, self._silences, strict=True):
            if silence.seconds > QUIET:
                self.well_since = time.monotonic()
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
        for service in self.services:
            service.cut_log()
        for step in self._steps.look(self._tell_hung):
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
        sweep_lost_runs(self._instance, self.socket)
        shutil.rmtree(progress_folder(self._data), ignore_errors=True)
        self.begin()
        self._note("the code server had ended: both are started again, lost runs are retried")

    def _tell_hung(self, step: StepProgress) -> None:
        """In the run's log, or not if that takes nothing: the step is killed all the same."""
        with contextlib.suppress(Exception):
            report_hung(self._instance, step)

    def _note(self, text: str) -> None:
        """A line in the daemon's log, where people look for what became of their runs."""
        with contextlib.suppress(OSError, ServiceError):
            self.services[1].note(f"ringrift: {text}")

    def kill(self) -> None:
        """End both at once; what they were doing is found lost when the next daemon starts."""
        for service in reversed(self.services):
            service.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        """End both and cancel what runs, whatever goes wrong on the way.

        The daemon first, so that nothing starts any more; then the runs, whose workers only the
        code server can ask; then that. Of a history that is somebody else's by now nothing is
        cancelled: both end at once, as if this machine had lost power.
        """
        if not is_ours(self._instance):
            self.kill()
            for service in self.services:
                service.wait()
            return report_left(self._instance, self.socket)
        with contextlib.ExitStack() as last_first:
            last_first.callback(shutil.rmtree, self._folder, ignore_errors=True)
            last_first.callback(report_cancelled, self._instance, self.socket)
            for service in self.services[:1]:
                last_first.callback(service.stop)
            last_first.callback(cancel_active, self._instance, self.socket)
            for service in self.services[1:]:
                last_first.callback(service.stop)

"""Starting and stopping the daemon and the web server, whatever state they are in."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ringrift_pipeline.orchestration.instance import environment
from ringrift_pipeline.orchestration.names import MODULE
from ringrift_pipeline.orchestration.places import home_folder

_SERVICE = "ringrift_pipeline.orchestration.service"

# How long each way of asking is given, seconds; the last one cannot be refused.
PATIENCE = ((signal.SIGINT, 12.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

START_PATIENCE = 120.0  # seconds a code server may take to answer


class ServiceError(RuntimeError):
    """The daemon or the web server ended by itself; the message has its last lines."""


class Service:
    """One process (and all it starts) in a session of its own, its output in a log file."""

    def __init__(self, data: Path, kind: str, *arguments: str) -> None:
        self.kind = kind
        self.log = home_folder(data) / "services" / f"{kind}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _SERVICE, kind, *arguments],
                env=environment(data),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._process.pid

    def check(self) -> None:
        """Raises ServiceError if the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise ServiceError(
                f"the Dagster {self.kind} ended with code {code}; the end of {self.log}:\n"
                + "\n".join(self.last_lines())
            )

    def last_lines(self, count: int = 12) -> list[str]:
        """The end of the log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGTERM)  # run workers and code servers that stayed
            time.sleep(0.5)
            os.killpg(self.pid, signal.SIGKILL)


class Backend:
    """The daemon and the code server it works with, started and stopped together.

    A code server of our own: one that the daemon manages is replaced every minute by a fresh one,
    which costs seconds of a core each time.
    """

    def __init__(self, data: Path) -> None:
        # The path of a socket has at most about a hundred characters; a data root may have more.
        self._folder = Path(tempfile.mkdtemp(prefix="ringrift-"))
        socket = self._folder / "code.sock"
        workspace = self._folder / "workspace.yaml"
        server = {"grpc_server": {"socket": str(socket), "location_name": MODULE}}
        workspace.write_text(json.dumps({"load_from": [server]}), encoding="utf-8")  # YAML as well
        self.workspace = ("-w", str(workspace))
        self.services: list[Service] = []
        try:
            self.services.append(
                Service(data, "code-server", "api", "grpc", "--socket", str(socket), "-m", MODULE)
            )
            self._wait(socket)
            self.services.append(Service(data, "daemon", "run", *self.workspace))
        except BaseException:
            self.stop()
            raise

    def _wait(self, socket: Path) -> None:
        """Until the code server answers. Raises ServiceError."""
        from dagster._grpc.client import DagsterGrpcClient

        client = DagsterGrpcClient(socket=str(socket))
        deadline = time.monotonic() + START_PATIENCE
        while time.monotonic() < deadline:
            self.services[0].check()
            with contextlib.suppress(Exception):  # not listening yet
                client.ping("")
                return
            time.sleep(0.2)
        raise ServiceError(f"the code server did not answer for {START_PATIENCE:.0f} s")

    def check(self) -> None:
        """Raises ServiceError if one of the two has ended."""
        for service in self.services:
            service.check()

    def stop(self) -> None:
        """End both, the daemon first."""
        for service in reversed(self.services):
            service.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def start_webserver(
    data: Path, host: str, port: int, workspace: tuple[str, ...] = ("-m", MODULE)
) -> Service:
    """The web UI on this data root; ``workspace`` names a code server that is there already."""
    return Service(data, "webserver", *workspace, "--host", host, "--port", str(port))

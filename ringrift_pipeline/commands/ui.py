"""``ringrift ui``: the Dagster UI on a data root."""

from __future__ import annotations

import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringrift_pipeline.commands.console import print_json, say
from ringrift_pipeline.commands.options import Common, InputError
from ringrift_pipeline.commands.stopping import stoppable
from ringrift_pipeline.orchestration.places import (
    HERE,
    PLAY_VARIABLE,
    data_folder,
    own_play_port,
    play_address,
)

if TYPE_CHECKING:
    from ringrift_pipeline.orchestration.services import Service
    from ringrift_pipeline.store import LockedError

PORT = 3000


def ui_line(common: Common, port: int = PORT) -> str:
    """What to type, in this shell and folder, to open the UI on this history."""
    words = [*_program(), "ui", "--config", common.config]
    if common.root != data_folder():
        words += ["--data", str(common.root)]
    if port != PORT:
        words += ["--port", str(port)]
    return shlex.join(words)


def _program() -> list[str]:
    """How this program was called: ``ringrift`` where the shell finds it, else by its path."""
    called = Path(sys.argv[0])
    if called.name == "ringrift":
        found = shutil.which("ringrift")
        same = found is not None and Path(found).resolve() == called.resolve()
        return ["ringrift"] if same else [_from_here(called)]
    return [_from_here(Path(sys.executable)), "-m", "ringrift_pipeline"]


def _from_here(path: Path) -> str:
    path = path.absolute()  # not resolved: an environment's python is a link
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def url(config: str, port: int, host: str = HERE, token: str | None = None) -> str:
    """The page of a config's own lineage (groups are collapsed on the page of all), with the token
    in it where one is asked for; a server that listens on every address is named by this machine's
    name.
    """
    location = "__repository__@ringrift_pipeline.definitions"
    name = socket.gethostname() if host == "0.0.0.0" else host
    query = f"?token={token}" if token else ""
    return f"http://{name}:{port}/locations/{location}/asset-groups/{config}/lineage{query}"


def check_port(host: str, port: int) -> None:
    """Raises InputError if somebody listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {host} cannot be used ({error.strerror}); name another with --port"
            ) from None


def _without_daemon(error: LockedError) -> str:
    holder = error.holder
    who = f"Process {holder['pid']} ({holder['command']})" if holder else "Another process"
    who = getattr(error, "who", who)  # on another machine, perhaps
    return (
        f"{who} runs the daemon of this history, so these are its pages alone: what is launched in "
        "them waits for that daemon, and Ctrl-C leaves its runs alone."
    )


class GamesPage:
    """The page that the assets link to recorded games on, served beside the UI if it is this
    machine's to serve; use as a context manager. ``says`` is a line for people: where it is, or why
    there is none; ``address`` is None then.
    """

    def __init__(self, data: Path) -> None:
        from ringrift_pipeline.orchestration.services import start_play

        self._service: Service | None = None
        self.address: str | None = None
        port = own_play_port()
        if port is None:
            self.says = (
                f"Links to recorded games lead to {play_address()}, as {PLAY_VARIABLE} says."
            )
            return
        try:
            self._service = start_play(data, port)
        except OSError as error:
            self.says = (
                f"Links to recorded games lead to whoever serves port {port} on {HERE}, which is "
                f"not to be had ({error.strerror})."
            )
            return
        self.address = play_address()
        self.says = f"Recorded games, and a board to play on: {self.address}"

    def look(self) -> None:
        """Tell, once, if it has ended: nothing else needs it."""
        from ringrift_pipeline.orchestration.services import ServiceError

        try:
            if self._service is not None:
                self._service.check()
        except ServiceError as error:
            say(str(error))
            self._service = None

    def __enter__(self) -> GamesPage:
        return self

    def __exit__(self, *_: object) -> None:
        if self._service is not None:  # it keeps nothing that could be lost, and may be deaf
            self._service.kill()
            self._service.wait()


def _watch(services: list[Any], page: GamesPage | None, stopping: Callable[[], bool]) -> None:
    """Until it is asked to stop. Raises ServiceError if a service has ended for good."""
    while not stopping():
        for service in services:
            service.check()
        if page is not None:
            page.look()
        time.sleep(0.5)


def ui(
    common: Common,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")
    ] = PORT,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. Any but this machine's own asks for a token.",
        ),
    ] = HERE,
    daemon: Annotated[
        bool,
        typer.Option(
            "--daemon/--no-daemon",
            help="Run the daemon as well, so that what is launched in the UI, the sensors and the "
            "schedules run. Where a ringrift loop has one running already, there is no second.",
        ),
    ] = True,
    play: Annotated[
        bool,
        typer.Option(
            "--play/--no-play",
            help="Serve the page of ringrift play as well, for this machine alone: the assets link "
            "to recorded games on it.",
        ),
    ] = True,
) -> None:
    """Open the Dagster UI on everything under --data, until Ctrl-C.

    Starts the web server, the daemon and the page of recorded games. Ctrl-C (or SIGTERM) cancels
    what runs and stops them all, a second one ends them at once; what is finished stays. Where
    another process runs this history's daemon, its runs are left alone.
    """
    from contextlib import ExitStack, suppress

    from ringrift_pipeline.orchestration.backend import Backend
    from ringrift_pipeline.orchestration.environment import check_environment
    from ringrift_pipeline.orchestration.instance import own_instance, prepare_home
    from ringrift_pipeline.orchestration.services import start_webserver
    from ringrift_pipeline.store import LockedError
    from ringrift_pipeline.web import token_for

    check_environment()
    check_port(host, port)
    token = token_for(host)
    services: list[Any] = []
    with (
        suppress(KeyboardInterrupt),
        stoppable(lambda: [service.kill() for service in services]) as stopping,
        ExitStack() as stack,
    ):
        note = "It shows the history, and runs nothing."
        if daemon:
            try:
                instance = stack.enter_context(own_instance(common.root))
            except LockedError as error:
                daemon, note = False, _without_daemon(error)
        if daemon:
            backend = Backend(common.root, instance, stopping)
            stack.callback(backend.stop)
            services.append(backend)
            backend.begin()
            web = start_webserver(common.root, host, port, backend.workspace, stopping, token)
        else:
            prepare_home(common.root)
            web = start_webserver(common.root, host, port, stopping=stopping, token=token)
        stack.callback(web.stop)
        services.append(web)
        page = stack.enter_context(GamesPage(common.root)) if play else None
        address = url(common.config, port, host, token)
        if common.as_json:
            served = page.address if page is not None else None
            told = {"url": address, "data": str(common.root), "daemon": daemon, "play": served}
            print_json(told)
        else:
            say(f"Dagster UI of {common.root}: {address}")
            if not daemon:
                say(note)
            if page is not None:
                say(page.says)
            say("Ctrl-C stops it.")
        if token:
            say("Whoever has this address can launch runs; the connection is not encrypted.")
        _watch(services, page, stopping)
    say("stopped")

"""Entry point of the processes that the command line starts: daemon, code server, web server, and
the page of recorded games.

``python -m ringrift_pipeline.orchestration.service daemon run -m MODULE`` is ``dagster-daemon run
-m MODULE`` that ends, with all it started, when the process that started it is gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time

from ringrift_pipeline.orchestration.places import CODE, OWNER, data_folder, home_folder
from ringrift_pipeline.orchestration.presence import announce

LOOK = 0.25  # seconds between two looks at the parent
# Seconds between asking to end and killing the process group. Nobody waits for what the work under way
# could still do in them but whoever is started in the owner's place.
GRACE = 1.0
READY = 0.05  # seconds between two looks whether there is a code server


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    if os.getpgid(0) == os.getpid():  # ours alone: started in a session of its own
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _play(host: str, port: int, descriptor: int) -> None:
    """The page to look at recorded games and to play on, on a socket that listens already.

    Until the first visitor comes nothing is loaded, so that it costs next to nothing to have it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # nobody waits for a search that still runs
        signal.signal(number, lambda *_: os._exit(0))
    with socket.socket(fileno=descriptor) as listening:
        select.select([listening], [], [])
        from ringrift_pipeline.web import Access, create_app, serve

        serve(create_app(data_folder(), Access(host, port)), listening)


def _ignore_env_files() -> None:
    """Keep Dagster from setting variables as a file ``.env`` in the current folder says, which may be a
    data root that somebody has sent.
    """
    from dagster._cli import utils

    utils.get_env_var_dict = lambda base_dir: {}


def _await_workspace() -> None:
    """Until there is the file that ``-w`` names, if it names one: there is a code server then."""
    if "-w" in sys.argv:
        workspace = sys.argv[sys.argv.index("-w") + 1]
        while not os.path.exists(workspace):
            time.sleep(READY)


def main() -> None:
    """Run ``daemon``, ``code-server``, ``webserver`` or ``play`` with the rest of the line.

    Raises InstanceFileError: the file of the instance names what it may not; it may have changed since
    the last start.
    """
    kind = sys.argv[1]
    # Who started it may be gone by now, and its parent another.
    owner = int(os.environ.pop(OWNER, os.getppid()))
    watcher = threading.Thread(target=_watch, args=(owner,), daemon=True)
    watcher.start()
    announce(kind, sys.argv[2:])
    if kind == "play":  # play --host HOST --port PORT --socket DESCRIPTOR
        return _play(sys.argv[3], int(sys.argv[5]), int(sys.argv[7]))
    # Only now, as it brings Dagster, which a page without visitors does not need.
    from ringrift_pipeline.orchestration.instance_file import check_instance_file

    check_instance_file(home_folder(data_folder()))
    _ignore_env_files()
    sys.argv = [f"dagster-{kind}", *sys.argv[2:]]
    if kind == "webserver" and "-m" in sys.argv:
        os.chdir("/")  # it starts a code server of Dagster's own, which would import from here
    if kind == "code-server":
        sys.path.insert(0, str(CODE))  # Dagster leaves out what is first, a script's folder
    if kind == "daemon":
        from dagster._daemon.cli import main as run

        _await_workspace()
    elif kind == "code-server":
        from dagster._cli import main as run
    elif kind == "webserver":
        from ringrift_pipeline.orchestration.ui_server import serve_ui

        _await_workspace()
        return serve_ui(sys.argv[1:])
    else:
        raise SystemExit(f"no service is called {kind!r}")
    run()


if __name__ == "__main__":
    main()

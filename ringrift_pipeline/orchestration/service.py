"""Entry point of the processes that the command line starts: daemon, code server, web server.

``python -m ringrift_pipeline.orchestration.service daemon run -m MODULE`` is ``dagster-daemon run
-m MODULE`` that ends, with all it started, when the process that started it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from ringrift_pipeline.orchestration.presence import announce

LOOK = 1.0  # seconds between two looks at the parent
GRACE = 10.0  # seconds between asking to end and killing the process group


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    if os.getpgid(0) == os.getpid():  # ours alone: started in a session of its own
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Run ``daemon``, ``code-server`` or ``webserver`` with the rest of the command line."""
    kind = sys.argv[1]
    watcher = threading.Thread(target=_watch, args=(os.getppid(),), daemon=True)
    watcher.start()
    announce(kind, sys.argv[2:])
    sys.argv = [f"dagster-{kind}", *sys.argv[2:]]
    if kind == "daemon":
        from dagster._daemon.cli import main as run
    elif kind == "code-server":
        from dagster._cli import main as run
    elif kind == "webserver":
        from dagster_webserver.cli import main as run
    else:
        raise SystemExit(f"no service is called {kind!r}")
    run()


if __name__ == "__main__":
    main()

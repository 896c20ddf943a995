"""A process that has everything loaded and forks one that does a stage, again and again.

``python -m faults.zygote stages`` (or ``ticks``; from ``tests/``) reads a JSON line ``{"root", "stage", "generation",
"stopped", "log"}``, answers with the process id of the fork, and with its exit status (negative: the
signal that killed it) when it has ended. A fork that is to be ``stopped`` leads a process group of
its own and stops before its work, so that a tracer can take it up.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from . import stages, ticks

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = 2**64 - 1

Work = Callable[[Path, str, int], None]


def main() -> None:
    works: dict[str, Work] = {"stages": stages.work, "ticks": ticks.work}
    {"stages": stages.prepare, "ticks": ticks.prepare}[sys.argv[1]]()
    work = works[sys.argv[1]]
    print("ready", flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_work(work, wish))
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(child, child)
        if wish["stopped"]:
            os.waitpid(child, os.WUNTRACED)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _work(work: Work, wish: dict[str, object]) -> int:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)
    log = os.open(str(wish["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if wish["stopped"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        work(Path(str(wish["root"])), str(wish["stage"]), int(str(wish["generation"])))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()

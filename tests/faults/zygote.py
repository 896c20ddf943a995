"""A process that has everything loaded and forks one that does a stage, again and again.

``python -m faults.zygote stages`` (or ``ticks``; from ``tests/``) reads a JSON line ``{"root", "stage", "generation",
"filter", "log"}``, answers with the process id of the fork, and with its exit status (negative: the
signal that killed it) when it has ended. A fork leads a process group of its own; one with a ``filter``
(the tracer's, of system calls) stops before its work, so that a tracer can take it up.
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
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

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
        if wish["filter"]:
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
    if wish["filter"]:
        _filter(bytes.fromhex(str(wish["filter"])))
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


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(program: bytes) -> None:
    """From now on this process, and what it starts, stops at the calls that a tracer wants to see."""
    library = ctypes.CDLL(None, use_errno=True)
    given = ctypes.byref(_Program(len(program) // 8, program))
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or library.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, given
    ):
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")


if __name__ == "__main__":
    main()

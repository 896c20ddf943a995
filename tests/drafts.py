"""Real processes that write an artefact and do not come to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WRITER = """
import sys
from ringrift_pipeline.store import Store
with Store(sys.argv[1]).create(sys.argv[2], 0, sys.argv[3]) as draft:
    (draft / "games").write_bytes(bytes(1000))
    print(draft.path, flush=True)
    sys.stdin.read()
    sys.exit("nobody let it land")
"""


class Writer:
    """A process in the middle of an artefact of generation 0, as long as ``with`` lasts.

    ``draft`` is the folder that it fills.
    """

    def __init__(self, root: Path, config: str, kind: str) -> None:
        command = [sys.executable, "-c", _WRITER, str(root), config, kind]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        self.draft = Path(self._process.stdout.readline().strip())
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

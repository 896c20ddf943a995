"""Work for several processes of which one dies, in a module that is light to load in each of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ringrift_pipeline.training.processes import Member


def the_second_dies(member: Member, note: str) -> int:
    """The first time it is begun the second process is killed; how many there are."""
    path = Path(note)
    if member.rank == 1 and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    member.tell(f"{member.rank} is there", "")
    for rank in range(member.count):
        member.hear(f"{rank} is there")
    return member.count

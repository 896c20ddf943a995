"""A step that is worked on elsewhere than its run.

The worker's process says so here, once; what surrounds a step then tells the run's own machine what
it would else leave in a file or find out from its parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringrift_pipeline.orchestration.progress import StepProgress


@dataclass
class RemoteStep:
    """What a worker's process is at.

    Attributes:
        progress: how far it is, as it told last.
        answered: whether PostgreSQL or Redis has answered it since somebody looked.
    """

    progress: StepProgress | None = None
    answered: bool = False


_current: RemoteStep | None = None


def begin() -> RemoteStep:
    """From now on this process is a remote step's own."""
    global _current
    _current = RemoteStep()
    return _current


def end() -> None:
    """This process is nobody's again."""
    global _current
    _current = None


def current() -> RemoteStep | None:
    """The remote step that this process is of, None everywhere else."""
    return _current


def note_answer() -> None:
    """Somebody has answered this process: it is not cut off from its run."""
    if _current is not None:
        _current.answered = True

"""What an artefact was made from, so that the same inputs are not worked through twice, and what
``resume`` may say of work that was not finished.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.store.kinds import made_by

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Draft, Store


def check_resume(resume: str) -> str:
    """``resume``, if it is ``auto``, ``never`` or a folder that is there. Raises ValueError."""
    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise ValueError(f"{resume!r} is neither auto nor never nor a folder")
    return resume


def sealed_inputs(plan: Plan, kind: str, artefacts: Iterable[Artefact]) -> dict[str, Any]:
    """What an artefact of this kind is made from, as metadata that JSON can hold: the plan's
    digest, the digests of the artefacts read, the version of the code unless it is the first.
    """
    return {
        "plan": plan.digest,
        "artefacts": [
            [artefact.generation, artefact.kind, artefact.digest] for artefact in artefacts
        ],
        **made_by(kind),
    }


def reuse(
    store: Store, plan: Plan, kind: str, inputs: dict[str, Any], *needs: str
) -> Artefact | None:
    """The current artefact of this kind if it verifies, was made from the same inputs and holds the
    files ``needs``, without which it cannot be read: one may have landed without them once.

    A corrupt one is moved to quarantine by the store; then there is none.
    """
    from ringrift_pipeline.store import CorruptArtefactError

    try:
        artefact = store.current(plan.config, plan.generation, kind)
    except CorruptArtefactError:
        return None
    if artefact is None or artefact.metadata.get("inputs") != inputs:
        return None
    return artefact if artefact.files.keys() >= set(needs) else None


class Parts:
    """Finished parts of a long work as artefacts of their own, so that a killed one goes on.

    Parameters
    ----------
    prefix:
        Of the parts' kinds: ``evaluation-part-`` makes ``evaluation-part-0007``.
    inputs:
        What the whole is made from; parts of other inputs do not count.
    file:
        What a part holds.
    """

    def __init__(
        self, store: Store, plan: Plan, prefix: str, inputs: dict[str, Any], file: str
    ) -> None:
        self._store, self._plan = store, plan
        self._prefix, self._inputs, self._file = prefix, inputs, file

    def find(self, name: str) -> Artefact | None:
        """A part that was finished before, from the same inputs."""
        return reuse(self._store, self._plan, self._prefix + name, self._inputs, self._file)

    def create(self, name: str, **metadata: Any) -> AbstractContextManager[Draft]:
        """Begin a part; as ``Store.create``."""
        return self._store.create(
            self._plan.config,
            self._plan.generation,
            self._prefix + name,
            {"inputs": self._inputs, **metadata},
        )

    def clear(self) -> None:
        """Remove all of them, of whatever inputs: the whole has landed."""
        for kind in self._store.kinds(self._plan.config, self._plan.generation):
            if kind.startswith(self._prefix):
                self._store.remove(self._plan.config, self._plan.generation, kind)

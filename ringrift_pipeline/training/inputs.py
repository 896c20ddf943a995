"""What an artefact was made from, so that the same inputs are not worked through twice."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Draft, Store


def sealed_inputs(plan: Plan, artefacts: Iterable[Artefact]) -> dict[str, Any]:
    """The plan's digest and the digests of the artefacts read, as metadata that JSON can hold."""
    return {
        "plan": plan.digest,
        "artefacts": [
            [artefact.generation, artefact.kind, artefact.digest] for artefact in artefacts
        ],
    }


def reuse(store: Store, plan: Plan, kind: str, inputs: dict[str, Any]) -> Artefact | None:
    """The current artefact of this kind if it verifies and was made from the same inputs.

    A corrupt one is moved to quarantine by the store; then there is none.
    """
    from ringrift_pipeline.store import CorruptArtefactError

    try:
        artefact = store.current(plan.config, plan.generation, kind)
    except CorruptArtefactError:
        return None
    if artefact is None or artefact.metadata.get("inputs") != inputs:
        return None
    return artefact


class Parts:
    """Finished parts of a long work as artefacts of their own, so that a killed one goes on.

    Parameters
    ----------
    prefix:
        Of the parts' kinds: ``evaluation-part-`` makes ``evaluation-part-0007``.
    inputs:
        What the whole is made from; parts of other inputs do not count.
    """

    def __init__(self, store: Store, plan: Plan, prefix: str, inputs: dict[str, Any]) -> None:
        self._store, self._plan = store, plan
        self._prefix, self._inputs = prefix, inputs

    def find(self, name: str) -> Artefact | None:
        """A part that was finished before, from the same inputs."""
        return reuse(self._store, self._plan, self._prefix + name, self._inputs)

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

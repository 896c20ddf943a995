"""What an artefact was made from, so that the same inputs are not worked through twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Store


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

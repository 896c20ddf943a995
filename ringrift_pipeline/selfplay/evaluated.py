"""What the evaluation of a model said of it; a later room makes that, and the next games rest on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringrift_pipeline.store.kinds import EVALUATION, EVALUATION_FILE

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store


def evaluation_of(store: Store, model: Artefact) -> tuple[Artefact, dict[str, Any]] | None:
    """The evaluation of this very model and its report; None if there is none, or it is damaged or
    another model's.
    """
    from ringrift_pipeline.store import CorruptArtefactError

    try:
        found = store.current(model.config, model.generation, EVALUATION)
    except CorruptArtefactError:
        return None
    if found is None:
        return None
    report: dict[str, Any] = found.read_json(EVALUATION_FILE)
    return (found, report) if report["candidate"]["digest"] == model.digest else None

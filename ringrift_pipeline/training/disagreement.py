"""How far the members of the last ensemble disagree on rows of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.opponents import ensemble_members
from ringrift_pipeline.selfplay.plan import Plan, open_model
from ringrift_pipeline.selfplay.stopping import Reporter

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.opponents import Member
    from ringrift_pipeline.store import Artefact, Store
    from ringrift_pipeline.training.window import Window

STOPPED = "hard examples: stopped while scoring; nothing was kept"


def panel(store: Store, plan: Plan) -> tuple[list[Artefact], list[Member]]:
    """What a generation's disagreement is made from: the plan's ensemble, and its members.

    The artefacts are the ensemble's and its members', for the list of inputs. Both lists are
    empty where the plan names no ensemble, or fewer than two members are still there.

    Raises
    ------
    PlanError, MissingArtefactError
        if the ensemble is not there as the plan names it.
    """
    if plan.ensemble is None:
        return [], []
    ensemble = open_model(store, plan.ensemble)
    members = ensemble_members(store, ensemble)
    if len(members) < 2:
        return [], []
    return [ensemble, *(member.artefact for member in members)], members


def disagreement(
    plan: Plan,
    members: list[Member],
    window: Window,
    rows: NDArray[np.int64],
    reporter: Reporter,
    done: int,
    total: int,
) -> NDArray[np.float64]:
    """Disagreement of an ensemble's members on ``rows`` (K,) of the window: (K,) nats.

    ``policy_weight`` times the Jensen-Shannon divergence of the members' policies, where the row
    is a full search (only those train the policy), plus ``value_weight`` times that of their
    chances of winning. Each is at most the logarithm of the number of members. Memory: the
    members, and one batch of rows.

    Parameters
    ----------
    done, total:
        Rows that were reported before, and that will have been in the end.

    Raises
    ------
    Interrupted
        if asked to stop.
    """
    from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
    from ringrift_pipeline.network import load_model, resolve_device
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.forward import scored, scoring_precision
    from ringrift_pipeline.training.threads import torch_threads

    device = resolve_device(plan.settings.device)
    ensemble = ModelEnsemble(device=device, value_kind="logits")
    for member in members:
        ensemble.add_model(load_model(member.artefact.path, device), member.weight, member.name)
    training = plan.settings.training

    def both(batch: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        found = ensemble.predict(batch["features"], batch["legal_mask"])
        assert found.value_divergence is not None
        divergences = found.policy_disagreement, found.value_divergence
        policy, value = (each.double().cpu().numpy() for each in divergences)
        return policy, value

    apart = np.zeros(len(rows))
    with torch_threads(1):
        for some, (policy, value) in scored(
            WindowDataset(window, device),
            rows,
            both,
            training.threads,
            precision=scoring_precision(plan, device),
            reporter=reporter,
            stopped=STOPPED,
        ):
            searched = window.full_search[rows[some]]
            apart[some] = training.policy_weight * policy * searched + training.value_weight * value
            done += len(some)
            reporter.report(done, total, f"{done}/{total} decisions scored")
    return apart

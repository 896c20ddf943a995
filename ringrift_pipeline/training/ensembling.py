"""The ensemble of the newest averaged models: how good together, how far apart."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.store.kinds import ENSEMBLE, ENSEMBLE_MEMBERS
from ringrift_pipeline.training.inputs import reuse, sealed_inputs
from ringrift_pipeline.training.window import build_window, open_window

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store

KIND = ENSEMBLE
MEMBERS = ENSEMBLE_MEMBERS
REPORT = "report.json"


def build_ensemble(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Put the newest EMA models together and measure them on the held-out games.

    Members, up to ``ensemble.members``: this generation's EMA model, those of earlier
    generations (newest first, of the same board geometry), and the checkpoint's last weights if
    there is room and the EMA model is not these (``averaging.enabled`` off). Files:
    ``members.json`` (name, generation, digest, path, weight) and ``report.json`` (held-out losses
    of every member and of the ensemble, and the members' disagreement by game phase).

    Raises
    ------
    MissingArtefactError
        if there is no EMA model or checkpoint.
    NonFiniteOutputError
        if a member gives what is not finite, naming it and the rows.
    Interrupted
        if ``should_stop`` says so.
    """
    from ringrift_pipeline.network import load_model, resolve_device
    from ringrift_pipeline.store import write_json_atomic
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.forward import held_out_losses
    from ringrift_pipeline.training.pictures import draw_disagreement
    from ringrift_pipeline.training.row_checks import check_outputs_of_rows
    from ringrift_pipeline.training.threads import torch_threads

    members = _members(store, plan)
    source = build_window(store, plan, progress=progress, should_stop=should_stop)
    inputs = sealed_inputs(plan, KIND, [*members.values(), source])
    existing = reuse(store, plan, KIND, inputs, MEMBERS)
    if existing is not None:
        return existing
    reporter = Reporter(progress, should_stop)
    device = resolve_device(plan.settings.device)
    dataset = WindowDataset(open_window(source.path), device)
    models = {name: load_model(artefact.path, device) for name, artefact in members.items()}
    training = plan.settings.training
    weights = (training.policy_weight, training.value_weight)
    with torch_threads(1):
        losses = {}
        for number, (name, model) in enumerate(models.items()):
            losses[name] = held_out_losses(
                model, dataset, dataset.window.holdout_rows, *weights, reporter, training.threads
            )
            check_outputs_of_rows(
                f"the member {name} ({members[name].path})",
                dataset.window,
                dataset.window.holdout_rows,
                losses[name].by_row,
            )
            reporter.report(number + 1, len(models) + 1, f"{name} measured")
        together, apart = _together(models, dataset, device, reporter, training.threads)
    combined = weights[0] * together["policy_loss_a_row"] + weights[1] * together["value_loss"]
    report = {
        "members": {name: loss.metrics("") for name, loss in losses.items()},
        "ensemble": {**together, "loss": combined},
    }
    best = min(loss.loss for loss in losses.values())
    metadata: dict[str, Any] = {
        "inputs": inputs,
        "members": list(members),
        "val/ensemble_loss": combined,
        "val/ensemble_loss_policy": together["policy_loss"],
        "val/ensemble_loss_value": together["value_loss"],
        "val/best_member_loss": best,
        "val/ensemble_gain": best - combined,
        "val/policy_disagreement": together["policy_disagreement"],
        "val/value_disagreement": together["value_disagreement"],
    }
    listing = [
        {
            "name": name,
            "kind": artefact.kind,
            "generation": artefact.generation,
            "digest": artefact.digest,
            "path": artefact.path.relative_to(Path(store.root)).as_posix(),
            "weight": 1.0,
        }
        for name, artefact in members.items()
    ]
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        write_json_atomic(draft / MEMBERS, listing)
        write_json_atomic(draft / REPORT, report)
        plies = dataset.window.ply[dataset.window.holdout_rows]
        draw_disagreement(draft, plies, *apart)
    reporter.report(len(models) + 1, len(models) + 1, "ensemble measured")
    return draft.artefact


def earlier_members(store: Store, plan: Plan) -> dict[str, Artefact]:
    """The members beside a generation's own model, by name: EMA models of earlier generations,
    newest first, one fewer than ``ensemble.members`` at most. Without those that are damaged.
    """
    from ringrift_pipeline.store import CorruptArtefactError

    found: dict[str, Artefact] = {}
    for generation in sorted(store.generations(plan.config), reverse=True):
        if generation < plan.generation and len(found) < plan.settings.ensemble.members - 1:
            with contextlib.suppress(CorruptArtefactError):
                model = store.current(plan.config, generation, "ema_model")
                if model is not None:
                    found[f"ema-{generation:04d}"] = model
    return found


def _members(store: Store, plan: Plan) -> dict[str, Artefact]:
    """Artefacts of the members by name, the candidate first."""
    room = plan.settings.ensemble.members
    found = {f"ema-{plan.generation:04d}": store.require(plan.config, plan.generation, "ema_model")}
    found |= earlier_members(store, plan)
    if len(found) < room and plan.settings.averaging.enabled:  # else they are in it already
        checkpoint = store.require(plan.config, plan.generation, "checkpoint")
        found[f"last-{plan.generation:04d}"] = checkpoint
    return found


def _together(
    models: dict[str, Any], dataset: Any, device: Any, reporter: Reporter, threads: int
) -> tuple[dict[str, Any], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Held-out losses of the ensemble and the disagreement of its members; that of each row, (K,)
    of the policy and (K,) of the value.
    """
    import torch

    from ringrift_pipeline.enhancements.model_ensemble import ModelEnsemble
    from ringrift_pipeline.game import layout
    from ringrift_pipeline.training.forward import scored

    ensemble = ModelEnsemble(device=device, value_kind="logits")
    for name, model in models.items():
        ensemble.add_model(model, name=name)
    rows = dataset.window.holdout_rows
    columns = np.zeros((6, len(rows)))

    def measured(batch: dict[str, Any]) -> list[Any]:
        prediction = ensemble.predict(batch["features"], batch["legal_mask"])
        target, outcome = batch["policy_targets"], batch["value_targets"]
        log_policy = prediction.policy_log_probs.clamp_min(-1e9)
        log_value = prediction.value.clamp_min(torch.finfo(torch.float32).tiny).log()
        found = (
            -(target * log_policy).sum(dim=1),
            -(outcome * log_value).sum(dim=1),
            (prediction.value - outcome).square().sum(dim=1),
            prediction.policy_disagreement,
            prediction.value_disagreement,
            target.sum(dim=1) > 0,
        )
        return [column.cpu().numpy() for column in found]

    stopped = "ensemble: stopped while measuring; nothing was kept"
    for some, found in scored(dataset, rows, measured, threads, reporter=reporter, stopped=stopped):
        columns[:, some] = found
    policy_loss, value_loss, brier, policy_apart, value_apart = columns[:5]
    searched = columns[5] > 0
    phases = dataset.window.phase[rows]
    report = {
        "rows": len(rows),
        "policy_loss": float(policy_loss[searched].mean()) if searched.any() else 0.0,
        "policy_loss_a_row": float(policy_loss.mean()),
        "value_loss": float(value_loss.mean()),
        "value_brier": float(brier.mean()),
        "policy_disagreement": float(policy_apart.mean()),
        "value_disagreement": float(value_apart.mean()),
        "disagreement_by_phase": {
            layout.PHASE_NAMES[phase]: {
                "rows": int((phases == phase).sum()),
                "policy": float(policy_apart[phases == phase].mean()),
                "value": float(value_apart[phases == phase].mean()),
            }
            for phase in np.unique(phases)
        },
    }
    return report, (policy_apart, value_apart)

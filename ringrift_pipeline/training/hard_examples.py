"""Hard examples: the decisions of a generation that the models before it understood least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringrift_pipeline.selfplay.plan import Plan, open_model
from ringrift_pipeline.selfplay.ragged import flat_positions, offsets_of
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.training.disagreement import STOPPED, disagreement, panel
from ringrift_pipeline.training.inputs import reuse, sealed_inputs
from ringrift_pipeline.training.window import Window, build_window, open_window

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store

KIND = "hard_examples"
TABLE = "hard_examples.parquet"
AT_ONCE = 1 << 16  # decisions whose moves are held in memory at a time
GLANCE = 4096  # decisions that are scored where nobody trains on them


def mine_hard_examples(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
    in_full: bool | None = None,
) -> Artefact:
    """Score this generation's training decisions and keep the hardest ``mining.buffer_size``.

    ``in_full`` scores all of them; without it ``GLANCE`` evenly spaced ones, enough for the gallery
    and the means. None means in full where ``mining.enabled``.

    Hardness is in nats: ``policy_weight`` times KL(search policy || parent's policy) for full
    searches, plus ``value_weight`` times KL(search value || parent's value), plus
    ``mining.surprise_weight`` times the surprise recorded at selfplay, plus
    ``mining.uncertainty_weight`` times the disagreement of the last ensemble's members
    (:func:`disagreement.disagreement`). Divergences, unlike losses on outcomes, are zero for a
    model that has learned all there is to learn. Where there is no parent model, surprise stands
    alone; games of the heuristic had no prior, and theirs is measured against the uniform one
    (``uniform_prior_surprise``). Where the plan has no ensemble of two members that are still
    there, ``uncertainty`` is 0.

    Held-out games are never mined, nor are the moves of an opponent: its search is another
    model's. Columns of the table: :data:`tables.HARD_EXAMPLES`.

    Raises
    ------
    MissingArtefactError, PlanError
        if a shard, the parent model or the ensemble is not there as the plan names it.
    NonFiniteOutputError
        if the parent gives what is not finite, naming it and the rows.
    BadRowsError
        if a surprise or policy of the rows is no data, naming the rows and their games.
    Interrupted
        if ``should_stop`` says so.
    """
    import polars as pl

    from ringrift_pipeline.training import tables
    from ringrift_pipeline.training.gallery import (
        SHOWN,
        draw_gallery,
        find_examples,
        judged_by,
    )

    artefact = build_window(store, plan, progress=progress, should_stop=should_stop)
    sources = [artefact]
    if plan.parent is not None:
        sources.append(open_model(store, plan.parent))
    artefacts, members = panel(store, plan)
    inputs = sealed_inputs(plan, KIND, [*sources, *artefacts])
    inputs["columns"] = [column.name for column in tables.HARD_EXAMPLES]
    in_full = plan.settings.mining.enabled if in_full is None else in_full
    inputs["in_full"] = in_full
    existing = reuse(store, plan, KIND, inputs, TABLE)
    if existing is not None:
        return existing
    window = open_window(artefact.path)
    own = ~window.holdout & (window.generation == plan.generation)
    rows = np.flatnonzero(own & ~window.opponent)
    if not in_full and len(rows) > GLANCE:
        rows = rows[np.arange(GLANCE) * len(rows) // GLANCE]
    passes = (plan.parent is not None) + bool(members)
    reporter = Reporter(progress, should_stop)
    settings = plan.settings
    surprise, uniform = _surprise(window, rows, heuristic=plan.champion is None)
    nothing = np.broadcast_to(0.0, rows.shape)  # takes no memory
    policy = value = uncertainty = nothing
    total = passes * len(rows)
    if plan.parent is not None:
        policy, value = _divergences(plan, sources[1], window, rows, reporter, total)
    if members:
        done = total - len(rows)
        uncertainty = disagreement(plan, members, window, rows, reporter, done, total)
    if plan.champion is None:
        value = nothing  # the heuristic knows no values
    told = "uniform_prior_surprise" if uniform else "surprise"
    terms = {told: (1.0, surprise)}  # weight and values
    if plan.parent is not None:
        terms = {
            "policy_loss": (settings.training.policy_weight, policy),
            "value_loss": (settings.training.value_weight, value),
            told: (settings.mining.surprise_weight, surprise),
        }
    if members:
        terms["uncertainty"] = (settings.mining.uncertainty_weight, uncertainty)
    hardness = np.zeros(len(rows))
    for weight, values in terms.values():
        hardness += weight * values
    keep = hardest_places(hardness, settings.mining.buffer_size)
    kept = np.stack([weight * values[keep] for weight, values in terms.values()])
    reasons = np.array(list(terms))[kept.argmax(axis=0)]
    frame = pl.DataFrame(
        {
            "game_id": [window.games[game] for game in window.game[rows[keep]]],
            "ply": window.ply[rows[keep]],
            "row": rows[keep].astype(np.int64),
            "hardness": hardness[keep],
            "policy_loss": policy[keep],
            "value_loss": value[keep],
            "surprise": surprise[keep],
            "uncertainty": uncertainty[keep],
            "reason": reasons.tolist(),
        },
        schema=tables.polars_schema(tables.HARD_EXAMPLES),
    )
    hardest = frame.sort("hardness", descending=True, maintain_order=True).head(SHOWN).to_dicts()
    metadata: dict[str, Any] = {
        "inputs": inputs,
        "examples": frame.height,
        "scored_rows": len(rows),
        "replay": {"hardest": f"{hardest[0]['game_id']}?ply={hardest[0]['ply']}"}
        if hardest
        else {},
        "scored_with": "parent" if plan.parent is not None else "surprise",
        "ensemble_members": [member.name for member in members],
    }
    if len(rows):  # all games of a small generation may be held out
        metadata["train/hardness_mean"] = float(hardness.mean())
        metadata["train/hardness_p90"] = float(np.quantile(hardness, 0.9))
        metadata["train/hardness_max"] = float(hardness.max())
    if members and len(rows):
        metadata["train/uncertainty_mean"] = float(uncertainty.mean())
    metadata |= {f"reason_{name}": int((reasons == name).sum()) for name in terms}
    judged = {}
    if plan.parent is not None and hardest:
        judged = judged_by(sources[1], window, [row["row"] for row in hardest], settings.device)
    examples = find_examples(store, plan, hardest, judged)
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        tables.write_table(draft / TABLE, frame, tables.HARD_EXAMPLES)
        draw_gallery(draft, examples)
    return draft.artefact


@dataclass(frozen=True)
class HardRows:
    """Examples to begin mining with: window rows (K,), their hardness and uncertainty, nats."""

    rows: NDArray[np.int64]
    hardness: NDArray[np.float64]
    uncertainty: NDArray[np.float64]


def read_hard_examples(artefact: Artefact) -> HardRows:
    """The examples of a ``hard_examples`` artefact."""
    from ringrift_pipeline.training import tables

    frame = tables.read_table(artefact.file(TABLE), tables.HARD_EXAMPLES)
    columns = (frame[name].to_numpy() for name in ("row", "hardness", "uncertainty"))
    return HardRows(*columns)


def hardest_places(hardness: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Places (at most ``most``,) of the largest values (K,), ascending; of equal ones the first."""
    if len(hardness) <= most:
        return np.arange(len(hardness))
    least = np.partition(hardness, len(hardness) - most)[len(hardness) - most]
    above = np.flatnonzero(hardness > least)
    ties = np.flatnonzero(hardness == least)[: most - len(above)]
    return np.sort(np.concatenate([above, ties]))


def _surprise(
    window: Window, rows: NDArray[np.int64], heuristic: bool
) -> tuple[NDArray[np.float64], bool]:
    """Surprise of the rows (K,), nats, and whether it is measured against a uniform prior.

    BadRowsError for a surprise, or else a policy, that is no data.
    """
    from ringrift_pipeline.training.row_checks import check_policies, check_surprise

    if not heuristic:
        check_surprise(window, rows)
        return np.maximum(window.surprise[rows].astype(np.float64), 0.0), False
    surprise = np.empty(len(rows))
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        starts = window.offsets[some]
        counts = window.offsets[some + 1] - starts
        policy = window.policy[flat_positions(starts, counts)].astype(np.float64)
        ends = offsets_of(counts)
        check_policies(window, some, policy, ends[:-1])
        terms = policy * np.log(np.maximum(policy, 1e-300))
        negative_entropy = np.add.reduceat(terms, ends[:-1])
        surprise[start : start + len(some)] = negative_entropy + np.log(counts)
    return np.maximum(surprise, 0.0, out=surprise), True


def _divergences(
    plan: Plan,
    parent: Artefact,
    window: Window,
    rows: NDArray[np.int64],
    reporter: Reporter,
    total: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """KL of the search's policy and value against the parent model's, each (K,) in nats."""
    import torch

    from ringrift_pipeline.network import load_model, resolve_device
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.forward import scored, scoring_precision
    from ringrift_pipeline.training.row_checks import check_outputs_of_rows
    from ringrift_pipeline.training.threads import torch_threads

    device = resolve_device(plan.settings.device)
    model = load_model(parent.path, device)

    def apart(batch: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        logits, values = model(batch["features"])
        log_policy = torch.log_softmax(
            logits.double().masked_fill(~batch["legal_mask"], -1e9), dim=1
        )
        log_value = torch.log_softmax(values.double()[:, : window.players], dim=1)
        rows = batch["indices"].cpu().numpy()
        found = torch.from_numpy(window.search_value[rows]).double().to(device)
        return _kl(batch["policy_targets"].double(), log_policy), _kl(found, log_value)

    policy = np.zeros(len(rows))
    value = np.zeros(len(rows))
    done = 0
    with torch_threads(1):
        for some, (policies, values) in scored(
            WindowDataset(window, device),
            rows,
            apart,
            plan.settings.training.threads,
            precision=scoring_precision(plan, device),
            reporter=reporter,
            stopped=STOPPED,
        ):
            policy[some], value[some] = policies, values
            name = f"the parent ({parent.path})"
            check_outputs_of_rows(name, window, rows[some], policies, values)
            done += len(some)
            reporter.report(done, total, f"{done}/{total} decisions scored")
    return policy, value


def _kl(target: Any, log_prediction: Any) -> NDArray[np.float64]:
    """KL(target || prediction) of each row, nats; 0 for rows whose target is all zero."""
    import torch

    divergence = (torch.xlogy(target, target) - target * log_prediction).sum(dim=1)
    return divergence.clamp_min(0.0).cpu().numpy()


__all__ = [
    "KIND",
    "TABLE",
    "HardRows",
    "hardest_places",
    "mine_hard_examples",
    "read_hard_examples",
]

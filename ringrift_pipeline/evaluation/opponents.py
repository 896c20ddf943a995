"""Who meets whom in an evaluation: the candidate, the champion, and players that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.evaluation.gate import SprtResult, sequential_test, sprt
from ringrift_pipeline.evaluation.tournament import Entrant, Match

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.enhancements.config_stages import EvaluationConfig
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["BASELINES", "EvaluationError", "Field", "field_of", "matches_of", "name_of"]

BASELINES = ("random", "heuristic", "rollout")
"""Opponents that never change: the gate's floors, and what ratings are anchored to."""


class EvaluationError(ValueError):
    """The plan's evaluation settings cannot be carried out; the message says which and why."""


@dataclass(frozen=True)
class Field:
    """Who meets whom.

    candidate: the model evaluated. champion: the plan's champion, None without one or where it is
    not to be met. others: remaining opponents, baselines first. record: the champion's own
    evaluation. has_champion: whether there is one, to be met or not, that is not the candidate.
    """

    candidate: Entrant
    champion: Entrant | None
    others: tuple[Entrant, ...]
    record: Artefact | None
    has_champion: bool

    @property
    def entrants(self) -> list[Entrant]:
        """Everybody."""
        first = [self.candidate] + ([self.champion] if self.champion else [])
        return first + list(self.others)


def name_of(generation: int) -> str:
    """What a generation's model is called in tables and reports."""
    return f"generation:{generation:04d}"


def field_of(store: Store, plan: Plan, model: Artefact) -> tuple[Field, list[Artefact]]:
    """The entrants, and every artefact that the result depends on.

    Raises:
        MissingArtefactError: if a model that is to be met is no longer there.
        EvaluationError: for an opponent that is not earlier than the candidate.
    """
    from ringrift_pipeline.network.devices import bears
    from ringrift_pipeline.selfplay.plan import open_model

    settings = plan.settings.evaluation
    artefacts = [model]

    def entrant(name: str, spec: str, about: Mapping[str, Any] | None = None) -> Entrant:
        # As the games of selfplay were played, wherever this is.
        search = {"precision": plan.precision, "backend": plan.backend}
        if about is not None and plan.settings.search.precision == "auto" and not bears(about):
            search["precision"] = "float32"
        return Entrant(
            name,
            spec,
            simulations=settings.simulations,
            seed=plan.seed_for("evaluation players") % 2**32,
            data=str(store.root),
            device=plan.settings.device,
            settings=plan.settings.search.model_copy(update=search),
            symmetries=settings.symmetries,
        )

    candidate = entrant(name_of(plan.generation), str(model.path), model.metadata)
    same = plan.champion is not None and plan.champion["digest"] == model.digest
    reigning = None if same else plan.champion
    champion, record = None, None
    others: dict[str, Entrant] = {}
    for spec in settings.opponents:
        if spec in BASELINES:
            others[spec] = entrant(spec, spec)
        elif spec == "champion":
            if reigning is not None:
                found = open_model(store, reigning)
                champion = entrant(name_of(found.generation), str(found.path), found.metadata)
                record = _record(store, plan, found)
                artefacts += [found] + ([record] if record else [])
        else:
            generation = int(spec.removeprefix("generation:"))
            if generation >= plan.generation:
                raise EvaluationError(
                    f"evaluation.opponents names {spec}, which is not earlier than the "
                    f"candidate's generation {plan.generation:04d}"
                )
            found = store.require(plan.config, generation, "ema_model")
            name = name_of(generation)
            others[name] = entrant(name, str(found.path), found.metadata)
            artefacts.append(found)
    if champion is not None:
        others.pop(champion.name, None)
    met = tuple(others.values())
    return Field(candidate, champion, met, record, reigning is not None), artefacts


def _record(store: Store, plan: Plan, champion: Artefact) -> Artefact | None:
    """The champion's own evaluation, if it is of that very model and was played alike."""
    from ringrift_pipeline.selfplay.evaluated import evaluation_of

    found = evaluation_of(store, champion)
    if found is None:
        return None
    evaluation, report = found
    alike = report["simulations"] == plan.settings.evaluation.simulations
    return evaluation if alike else None


def matches_of(field: Field, settings: EvaluationConfig, seats: int) -> list[Match]:
    """Every opponent's match; the champion's is sequential and comes last."""
    candidate = field.candidate.name
    sets = max(1, settings.games // seats)

    def line_up(opponent: Entrant) -> tuple[str, ...]:
        return (candidate, *[opponent.name] * (seats - 1))

    matches = [Match(other.name, line_up(other), sets) for other in field.others]
    if field.champion is not None:
        most = max(1, settings.max_games // seats)

        def decided(games: pl.DataFrame) -> bool:
            return _test(games, candidate, settings, seats).verdict != "continue"

        matches.append(Match(field.champion.name, line_up(field.champion), most, decided))
    return matches


def _test(
    games: pl.DataFrame, candidate: str, settings: EvaluationConfig, seats: int
) -> SprtResult:
    from ringrift_pipeline.evaluation.matches import set_scores

    return sprt(set_scores(games, candidate), players=seats, **sequential_test(settings))

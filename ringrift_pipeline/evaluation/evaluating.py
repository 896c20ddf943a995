"""Evaluation of a generation's candidate: matches, ratings, gate, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.evaluation.gate import (
    GateDecision,
    decide,
    sequential_test,
    set_interval,
    sprt,
)
from ringrift_pipeline.evaluation.ratings import (
    ANCHOR,
    ANCHOR_RATING,
    Ratings,
    fit_ratings,
)
from ringrift_pipeline.evaluation.tournament import Entrant, Match, play_matches
from ringrift_pipeline.store.kinds import EVALUATION, EVALUATION_FILE
from ringrift_pipeline.training.inputs import Parts, reuse, sealed_inputs

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.enhancements.config_stages import EvaluationConfig
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["EvaluationError", "evaluate"]

KIND = EVALUATION
PART = "evaluation-part-"
REPORT = EVALUATION_FILE
GAMES = "games.parquet"
RATINGS = "ratings.parquet"

BASELINES = ("random", "heuristic", "rollout")
"""Opponents that never change: the gate's floors, and what ratings are anchored to."""


class EvaluationError(ValueError):
    """The plan's evaluation settings cannot be carried out; the message says which and why."""


@dataclass(frozen=True)
class _Field:
    """Who meets whom.

    candidate: the model evaluated. champion: the plan's champion, None without one.
    others: remaining opponents, baselines first. record: the champion's own evaluation.
    """

    candidate: Entrant
    champion: Entrant | None
    others: tuple[Entrant, ...]
    record: Artefact | None

    @property
    def entrants(self) -> list[Entrant]:
        first = [self.candidate] + ([self.champion] if self.champion else [])
        return first + list(self.others)


def evaluate(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Evaluate the EMA model of the plan's generation and decide whether it becomes champion.

    The candidate meets every opponent of ``evaluation.opponents`` in rotated sets, holding one
    seat against its opponent in all the others: ``evaluation.games`` games against each. The
    match against the champion goes on to ``evaluation.max_games`` unless the sequential test is
    decided before. Ratings are fitted over these games and, where it was made alike, those of the
    champion's own evaluation; only who won counts, as that is what players play for.

    Files: ``report.json`` (``candidate``, ``champion``, ``matches`` with win rates and intervals,
    ``ratings`` by player with intervals, ``fit``, ``gate`` with ``promote`` and ``reasons``),
    ``games.parquet`` (`matches.GAMES_SCHEMA`), ``ratings.parquet`` (`tables.RATINGS`).
    Metadata: ``eval/elo`` with ``_low`` and ``_high``, ``eval/win_rate_<opponent>`` with
    bounds, ``eval/games``, ``eval/sets``, ``eval/sprt_llr``, ``eval/promote``.

    Returns:
        Artefact of kind ``evaluation``; the current one if it was made from the same inputs.

    Raises:
        MissingArtefactError: if there is no EMA model.
        EvaluationError: for an opponent that is not earlier than the candidate.
        Interrupted: if asked to stop.
    """
    from ringrift_pipeline.evaluation.tables import GAMES as GAME_COLUMNS
    from ringrift_pipeline.evaluation.tables import RATINGS as RATING_COLUMNS
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import resolve_device
    from ringrift_pipeline.store import write_json_atomic
    from ringrift_pipeline.training.tables import write_table

    settings = plan.settings.evaluation
    model = store.require(plan.config, plan.generation, "ema_model")
    field, artefacts = _field(store, plan, model)
    inputs = sealed_inputs(plan, KIND, artefacts)
    parts = Parts(store, plan, PART, inputs)
    existing = reuse(store, plan, KIND, inputs)
    if existing is not None:
        parts.clear()  # of a run that was killed when all was done but that
        return existing
    seats = get_rules(plan.config).players
    on_cpu = str(resolve_device(plan.settings.device)) == "cpu"
    games = play_matches(
        plan.config,
        field.entrants,
        list(_matches(field, settings, seats)),
        seed=plan.seed_for("evaluation"),
        workers=plan.settings.selfplay.workers if on_cpu else 1,
        played=_PlayedJobs(parts),
        progress=progress,
        should_stop=should_stop,
    )
    report = _report(plan, field, model, games, seats)
    fit: Ratings = report.pop("_fit")
    metadata = {"inputs": inputs, "model": model.digest} | _numbers(report, field)
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        write_json_atomic(draft.path / REPORT, report)
        write_table(draft.path / GAMES, games, GAME_COLUMNS)
        write_table(draft.path / RATINGS, fit.to_frame(), RATING_COLUMNS)
    parts.clear()
    return draft.artefact


def decide_again(store: Store, plan: Plan, evaluation: Artefact) -> GateDecision:
    """What the gate makes of the games that an evaluation recorded, whatever its report says.

    Raises:
        MissingArtefactError: if the EMA model or the champion is no longer there.
        TableError: if the games are no table of games.
        MatchError: if a rotated set is incomplete.
    """
    from ringrift_pipeline.evaluation import tables
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.training.tables import read_table

    model = store.require(plan.config, plan.generation, "ema_model")
    field, _ = _field(store, plan, model)
    games = read_table(evaluation.file(GAMES), tables.GAMES)
    return _decide(plan, field, _scores(field, games), get_rules(plan.config).players)


class _PlayedJobs:
    """The games of finished jobs as artefacts ``evaluation-part-NNNN``, until all have landed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def load(self, job: int) -> pl.DataFrame | None:
        """The games of a job, if they were played from the same inputs."""
        import polars as pl

        artefact = self._parts.find(f"{job:04d}")
        return None if artefact is None else pl.read_parquet(artefact.file(GAMES))

    def keep(self, job: int, games: pl.DataFrame) -> None:
        """Land the games of a job."""
        from ringrift_pipeline.evaluation.tables import GAMES as GAME_COLUMNS
        from ringrift_pipeline.training.tables import write_table

        with self._parts.create(f"{job:04d}") as draft:
            write_table(draft.path / GAMES, games, GAME_COLUMNS)


# -- who meets whom -------------------------------------------------------------------------


def _name(generation: int) -> str:
    return f"generation:{generation:04d}"


def _field(store: Store, plan: Plan, model: Artefact) -> tuple[_Field, list[Artefact]]:
    """The entrants, and every artefact that the result depends on."""
    from ringrift_pipeline.network.devices import bears

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

    candidate = entrant(_name(plan.generation), str(model.path), model.metadata)
    champion, record = None, None
    others: dict[str, Entrant] = {}
    for spec in settings.opponents:
        if spec in BASELINES:
            others[spec] = entrant(spec, spec)
        elif spec == "champion":
            found = _champion(store, plan, model)
            if found is not None:
                champion = entrant(_name(found.generation), str(found.path), found.metadata)
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
            name = _name(generation)
            others[name] = entrant(name, str(found.path), found.metadata)
            artefacts.append(found)
    if champion is not None:
        others.pop(champion.name, None)
    return _Field(candidate, champion, tuple(others.values()), record), artefacts


def _champion(store: Store, plan: Plan, model: Artefact) -> Artefact | None:
    """The plan's champion, None if there is none or it is the very model to be evaluated."""
    from ringrift_pipeline.selfplay.plan import open_model

    if plan.champion is None or plan.champion["digest"] == model.digest:
        return None
    return open_model(store, plan.champion)


def _record(store: Store, plan: Plan, champion: Artefact) -> Artefact | None:
    """The champion's own evaluation, if it is of that very model and was played alike."""
    from ringrift_pipeline.store import CorruptArtefactError

    try:
        found = store.current(plan.config, champion.generation, KIND)
    except CorruptArtefactError:
        return None
    if found is None:
        return None
    report = found.read_json(REPORT)
    alike = report["simulations"] == plan.settings.evaluation.simulations
    same = report["candidate"]["digest"] == champion.digest
    return found if alike and same else None


def _matches(field: _Field, settings: EvaluationConfig, seats: int) -> list[Match]:
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


def _test(games: pl.DataFrame, candidate: str, settings: EvaluationConfig, seats: int) -> Any:
    from ringrift_pipeline.evaluation.matches import set_scores

    return sprt(set_scores(games, candidate), players=seats, **sequential_test(settings))


# -- what came of it ------------------------------------------------------------------------


def _report(
    plan: Plan, field: _Field, model: Artefact, games: pl.DataFrame, seats: int
) -> dict[str, Any]:
    import polars as pl

    from ringrift_pipeline.evaluation.matches import OPENING_DECISIONS

    settings = plan.settings.evaluation
    candidate = field.candidate.name
    scores = _scores(field, games)
    gate = _decide(plan, field, scores, seats)
    fit = _ratings(field, games, settings.confidence)
    matches = []
    for name, values in scores.items():
        own = games.filter(pl.col("match") == name)
        low, high = set_interval(values, seats, settings.confidence)
        matches.append(
            {
                "opponent": name,
                "games": own.height,
                "sets": len(values),
                "win_rate": float(values.mean()),
                "low": low,
                "high": high,
                "even": 1.0 / seats,
                "win_rate_by_seat": _by_seat(own, candidate, seats),
                "mean_plies": float(own["plies"].mean()),  # type: ignore[arg-type]
            }
        )
    rated = {row.pop("player"): row for row in fit.to_frame().to_dicts()}
    return {
        "config": plan.config,
        "generation": plan.generation,
        "candidate": {"name": candidate, "generation": plan.generation, "digest": model.digest},
        "champion": plan.champion and {"name": _name(plan.champion["generation"])} | plan.champion,
        "simulations": settings.simulations,
        "opening_decisions": OPENING_DECISIONS,
        "confidence": settings.confidence,
        "games": games.height,
        "matches": matches,
        "ratings": rated,
        "fit": fit.to_dict(),
        "gate": gate.to_dict(),
        "_fit": fit,
    }


def _scores(field: _Field, games: pl.DataFrame) -> dict[str, Any]:
    """Set scores of the candidate in every match."""
    import polars as pl

    from ringrift_pipeline.evaluation.matches import set_scores

    return {
        match: set_scores(games.filter(pl.col("match") == match), field.candidate.name)
        for match in games["match"].unique(maintain_order=True)
    }


def _decide(plan: Plan, field: _Field, scores: dict[str, Any], seats: int) -> GateDecision:
    settings, champion = plan.settings.evaluation, field.champion
    return decide(
        {name: values for name, values in scores.items() if name in BASELINES},
        scores[champion.name] if champion else None,
        _champion_shares(field),
        players=seats,
        confidence=settings.confidence,
        **sequential_test(settings),
    )


def _champion_shares(field: _Field) -> dict[str, float]:
    """The champion's share of the win against each baseline, from its own evaluation."""
    if field.record is None:
        return {}
    report = field.record.read_json(REPORT)
    return {match["opponent"]: match["win_rate"] for match in report["matches"]}


def _ratings(field: _Field, games: pl.DataFrame, confidence: float) -> Ratings:
    """Ratings over these games and the champion's record, anchored at a baseline."""
    import polars as pl

    columns = ("players", "ranks", "set")

    def named(table: pl.DataFrame, source: str) -> pl.DataFrame:
        sets = pl.format("{}/{}/{}", pl.lit(source), "match", "set").alias("set")
        return table.with_columns(sets).select(columns)

    tables = [named(games, "own")]
    if field.record is not None:
        known = {entrant.name for entrant in field.entrants}
        earlier = pl.read_parquet(field.record.file(GAMES)).filter(
            pl.col("players").list.eval(pl.element().is_in(list(known))).list.all()
        )
        tables.append(named(earlier, "champion"))
    heuristic = any(other.name == ANCHOR for other in field.others)
    return fit_ratings(
        pl.concat(tables),
        anchor=ANCHOR if heuristic else "random",
        anchor_rating=ANCHOR_RATING if heuristic else 0.0,
        depth=1,
        confidence=confidence,
    )


def _by_seat(games: pl.DataFrame, candidate: str, seats: int) -> list[float]:
    """The candidate's share of the win in each seat."""
    import polars as pl

    rows = games.select("players", "shares").explode("players", "shares")
    rows = rows.with_columns(seat=pl.int_range(pl.len()) % seats)
    rows = rows.filter(pl.col("players") == candidate).group_by("seat").agg(pl.col("shares").mean())
    return rows.sort("seat")["shares"].to_list()


def _numbers(report: dict[str, Any], field: _Field) -> dict[str, Any]:
    """What the asset plots."""
    gate: dict[str, Any] = report["gate"]
    rating = report["ratings"][field.candidate.name]
    numbers: dict[str, Any] = {
        "eval/elo": rating["rating"],
        "eval/elo_low": rating["low"],
        "eval/elo_high": rating["high"],
    }
    for match in report["matches"]:
        champion = field.champion is not None and match["opponent"] == field.champion.name
        name = "champion" if champion else match["opponent"].replace(":", "_")
        numbers[f"eval/win_rate_{name}"] = match["win_rate"]
        numbers[f"eval/win_rate_{name}_low"] = match["low"]
        numbers[f"eval/win_rate_{name}_high"] = match["high"]
    if gate["sprt"] is not None:
        numbers["eval/sprt_llr"] = gate["sprt"]["llr"]
    numbers["eval/games"] = report["games"]
    numbers["eval/promote"] = int(gate["promote"])
    numbers["promote"] = gate["promote"]
    numbers["reasons"] = list(gate["reasons"])
    return numbers

"""Evaluation of a generation's candidate: matches, ratings, gate, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringrift_pipeline.evaluation.gate import (
    GateDecision,
    decide,
    sequential_test,
    set_interval,
)
from ringrift_pipeline.evaluation.opponents import (
    BASELINES,
    Field,
    field_of,
    matches_of,
    name_of,
)
from ringrift_pipeline.evaluation.ratings import (
    ANCHOR,
    ANCHOR_RATINGS,
    RANDOM,
    Ratings,
    fit_ratings,
    shown_rating,
)
from ringrift_pipeline.evaluation.tournament import job_edges, play_matches
from ringrift_pipeline.store.kinds import EVALUATION, EVALUATION_FILE
from ringrift_pipeline.training.inputs import Parts, reuse, sealed_inputs

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.enhancements.config_stages import EvaluationConfig
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["decide_again", "evaluate", "numbers"]

KIND = EVALUATION
PART = "evaluation-part-"
REPORT = EVALUATION_FILE
GAMES = "games.parquet"
RATINGS = "ratings.parquet"


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
    Metadata: `ratings.shown_rating`, ``eval/win_rate_<opponent>`` with
    bounds, ``eval/games``, ``eval/sprt_llr``, ``eval/promote``.

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
    field, artefacts = field_of(store, plan, model)
    inputs = sealed_inputs(plan, KIND, artefacts)
    parts = Parts(store, plan, PART, inputs, GAMES)
    existing = reuse(store, plan, KIND, inputs, REPORT, GAMES, RATINGS)
    if existing is not None:
        parts.clear()  # of a run that was killed when all was done but that
        return existing
    seats = get_rules(plan.config).players
    on_cpu = str(resolve_device(plan.settings.device)) == "cpu"
    games = play_matches(
        plan.config,
        field.entrants,
        list(matches_of(field, settings, seats)),
        seed=plan.seed_for("evaluation"),
        workers=plan.settings.selfplay.workers if on_cpu else 1,
        played=_PlayedJobs(parts),
        progress=progress,
        should_stop=should_stop,
    )
    report = _report(plan, field, model, games, seats)
    fit: Ratings = report.pop("_fit")
    metadata = {"inputs": inputs, "model": model.digest} | numbers(report)
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        write_json_atomic(draft / REPORT, report)
        write_table(draft / GAMES, games, GAME_COLUMNS)
        write_table(draft / RATINGS, fit.to_frame(), RATING_COLUMNS)
    parts.clear()
    return draft.artefact


def games_of(artefact: Artefact) -> pl.DataFrame:
    """The games that an evaluation, a part of one or a gauntlet recorded. Raises TableError."""
    from ringrift_pipeline.evaluation import tables
    from ringrift_pipeline.training.tables import read_table

    return read_table(artefact.file(GAMES), tables.GAMES)


def decide_again(store: Store, plan: Plan, evaluation: Artefact) -> GateDecision:
    """What the gate makes of the games that an evaluation recorded, whatever its report says.

    Raises:
        MissingArtefactError: if the EMA model or the champion is no longer there.
        TableError: if the games are no table of games.
        MatchError: if a rotated set is incomplete, or games that were to be played are missing.
    """
    from ringrift_pipeline.game import get_rules

    model = store.require(plan.config, plan.generation, "ema_model")
    field, _ = field_of(store, plan, model)
    games = games_of(evaluation)
    seats = get_rules(plan.config).players
    scores = _scores(field, games)
    check_played(field, plan.settings.evaluation, games, scores, seats)
    if field.champion is not None and field.record is None:  # gone since, or never there
        known = _noted_shares(evaluation.read_json(REPORT))
    else:
        known = _champion_shares(field)
    return _decide(plan, field, scores, known, seats)


def _noted_shares(report: dict[str, Any]) -> dict[str, float]:
    """The champion's shares as the gate noted them when it decided."""
    floors = report["gate"].get("floors", ())
    noted = {floor["baseline"]: floor.get("champion_share") for floor in floors}
    return {name: share for name, share in noted.items() if share is not None}


class _PlayedJobs:
    """The games of finished jobs as artefacts ``evaluation-part-NNNN``, until all have landed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def load(self, job: int) -> pl.DataFrame | None:
        """The games of a job, if they were played from the same inputs."""
        artefact = self._parts.find(f"{job:04d}")
        return None if artefact is None else games_of(artefact)

    def keep(self, job: int, games: pl.DataFrame) -> None:
        """Land the games of a job."""
        from ringrift_pipeline.evaluation.tables import GAMES as GAME_COLUMNS
        from ringrift_pipeline.training.tables import write_table

        with self._parts.create(f"{job:04d}") as draft:
            write_table(draft / GAMES, games, GAME_COLUMNS)


# -- what came of it ------------------------------------------------------------------------


def _report(
    plan: Plan, field: Field, model: Artefact, games: pl.DataFrame, seats: int
) -> dict[str, Any]:
    import polars as pl

    from ringrift_pipeline.evaluation.matches import OPENING_DECISIONS

    settings = plan.settings.evaluation
    candidate = field.candidate.name
    scores = _scores(field, games)
    gate = _decide(plan, field, scores, _champion_shares(field), seats)
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
        "champion": plan.champion
        and {"name": name_of(plan.champion["generation"])} | plan.champion,
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


def _scores(field: Field, games: pl.DataFrame) -> dict[str, Any]:
    """Set scores of the candidate in every match."""
    import polars as pl

    from ringrift_pipeline.evaluation.matches import set_scores

    return {
        match: set_scores(games.filter(pl.col("match") == match), field.candidate.name)
        for match in games["match"].unique(maintain_order=True)
    }


def check_played(
    field: Field,
    settings: EvaluationConfig,
    games: pl.DataFrame,
    scores: dict[str, Any],
    seats: int,
) -> None:
    """Raises MatchError unless every match that was to be played was, to its end."""
    import polars as pl

    from ringrift_pipeline.evaluation.matches import MatchError

    matches = {match.name: match for match in matches_of(field, settings, seats)}
    if sorted(matches) != sorted(scores):
        raise MatchError(
            f"there are games against {', '.join(sorted(scores)) or 'nobody'}, to be met were "
            f"{', '.join(sorted(matches))}"
        )
    for name, match in matches.items():
        played = len(scores[name])
        own = games.filter(pl.col("match") == name)
        end = match.sets
        if match.decided is not None:  # it ends where its test was asked first and had decided
            asked = (edge for edge in job_edges(match.sets, seats)[1:] if edge <= played)
            end = next((e for e in asked if match.decided(own.filter(pl.col("set") < e))), end)
        if own["set"].unique().sort().to_list() != list(range(end)):
            raise MatchError(f"against {name}: {played} of {end} rotated sets were played")


def _decide(
    plan: Plan, field: Field, scores: dict[str, Any], known: dict[str, float], seats: int
) -> GateDecision:
    settings, champion = plan.settings.evaluation, field.champion
    return decide(
        {name: values for name, values in scores.items() if name in BASELINES},
        scores[champion.name] if champion else None,
        known,
        players=seats,
        has_champion=field.has_champion,
        confidence=settings.confidence,
        **sequential_test(settings),
    )


def _champion_shares(field: Field) -> dict[str, float]:
    """The champion's share of the win against each baseline, by the games of its own evaluation."""
    import polars as pl

    from ringrift_pipeline.evaluation.matches import set_scores

    if field.record is None or field.champion is None:
        return {}
    games = games_of(field.record)
    return {
        name: float(set_scores(games.filter(pl.col("match") == name), field.champion.name).mean())
        for name in games["match"].unique(maintain_order=True)
        if name in BASELINES
    }


def _ratings(field: Field, games: pl.DataFrame, confidence: float) -> Ratings:
    """Ratings over these games and the champion's record, anchored at a baseline."""
    import polars as pl

    columns = ("players", "ranks", "set")

    def named(table: pl.DataFrame, source: str) -> pl.DataFrame:
        sets = pl.format("{}/{}/{}", pl.lit(source), "match", "set").alias("set")
        return table.with_columns(sets).select(columns)

    tables = [named(games, "own")]
    if field.record is not None:
        known = {entrant.name for entrant in field.entrants}
        earlier = games_of(field.record).filter(
            pl.col("players").list.eval(pl.element().is_in(list(known))).list.all()
        )
        tables.append(named(earlier, "champion"))
    anchor = ANCHOR if any(other.name == ANCHOR for other in field.others) else RANDOM
    return fit_ratings(
        pl.concat(tables),
        anchor=anchor,
        anchor_rating=ANCHOR_RATINGS[anchor],
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


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """Of an evaluation's report, what its metadata says: what the asset plots, and the verdict."""
    gate: dict[str, Any] = report["gate"]
    champion = (report["champion"] or {}).get("name")
    found: dict[str, Any] = {**shown_rating(report["ratings"], report["candidate"]["name"])}
    for match in report["matches"]:
        opponent = match["opponent"]
        name = "champion" if opponent == champion else opponent.replace(":", "_")
        found[f"eval/win_rate_{name}"] = match["win_rate"]
        found[f"eval/win_rate_{name}_low"] = match["low"]
        found[f"eval/win_rate_{name}_high"] = match["high"]
    if gate["sprt"] is not None:
        found["eval/sprt_llr"] = gate["sprt"]["llr"]
    found["eval/games"] = report["games"]
    found["eval/promote"] = int(gate["promote"])
    found["promote"] = gate["promote"]
    found["reasons"] = list(gate["reasons"])
    return found

"""One list of ratings a config: random, heuristic, rollouts and every generation.

A generation's own evaluation rates it by its own games. The list takes the games of all
evaluations and gauntlets that were played alike, and of rollout search against the heuristic, into
one maximum-likelihood fit (`ratings.fit_ratings`), so that every chain of games counts and all
intervals are on one scale. In a long history it is the games of the newest generations: those before
keep the rating of the last list that fitted them, or each new one would take longer than the last.

A match with the champion ends when the gate's test decides, which is sooner where the candidate was
lucky: a promoted model's rating is a little too high by it, a refused one's too low, and the list
leans on these matches wherever the baselines are beaten every time. `anchors.rate_against_anchors`
and gauntlets play fixed numbers of games.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.evaluation.ratings import (
    ANCHOR,
    ANCHOR_RATINGS,
    RANDOM,
    Ratings,
    fit_ratings,
)
from ringrift_pipeline.store.kinds import EVALUATION, EVALUATION_FILE, GAUNTLET
from ringrift_pipeline.store.kinds import RATING_LIST as KIND

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
    from ringrift_pipeline.store import Artefact, Store

__all__ = ["CURVE", "KIND", "TABLE", "RatingListError", "play_anchors", "rate_all"]

ANCHOR_KIND = "anchor_games"
TABLE = "ratings.parquet"
CURVE = "rating_curve.png"
LIST = "rating_list.md"
FITTED = 200
"""Generations, the newest, whose games are fitted, and those of whom they met."""
ANCHOR_SEED = 1200  # of the baselines' games: the same whatever the config's seed
ANCHOR_NAMES = ("rollout", ANCHOR, "random")
ANCHOR_MATCHES = tuple(itertools.pairwise(ANCHOR_NAMES))
"""Who meets whom in the baselines' games; a match has the name of the first."""


class RatingListError(ValueError):
    """There is nothing that could be rated; the message says why."""


@dataclass(frozen=True)
class _Source:
    """Games of one artefact: who was who (digest by name), how they were played."""

    artefact: Artefact
    models: dict[str, str]
    how: tuple[int, int]  # simulations, random decisions that open a set


def play_anchors(
    store: Store,
    plan: Plan,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact | None:
    """``evaluation.anchor_games`` games each of rollout search against the heuristic and of the
    heuristic against random play, once a config: whomever a generation met, all are connected.

    Rollout search has ``evaluation.simulations`` playouts a decision, as in an evaluation. The
    artefact, ``anchor_games`` with ``games.parquet``, is that of whichever earlier generation
    played such games, else it is made in the plan's; None where the setting is 0.

    Raises:
        Interrupted: if asked to stop; nothing is kept.
    """
    from ringrift_pipeline.evaluation.matches import OPENING_DECISIONS
    from ringrift_pipeline.evaluation.tables import GAMES
    from ringrift_pipeline.evaluation.tournament import Entrant, Match, play_matches
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.store import CorruptArtefactError
    from ringrift_pipeline.training.tables import write_table

    settings = plan.settings.evaluation
    if not settings.anchor_games:
        return None
    seats = get_rules(plan.config).players
    sets = max(1, settings.anchor_games // seats)
    how = {
        "simulations": settings.simulations,
        "opening_decisions": OPENING_DECISIONS,
        "sets": sets,
    }
    for generation in store.generations(plan.config):
        if generation <= plan.generation:
            with contextlib.suppress(CorruptArtefactError):  # they are played again
                found = store.current(plan.config, generation, ANCHOR_KIND)
                if found is not None and found.metadata == how:
                    return found
    games = play_matches(
        plan.config,
        [Entrant(name, name, settings.simulations, seed=ANCHOR_SEED) for name in ANCHOR_NAMES],
        [Match(one, (one, *[other] * (seats - 1)), sets) for one, other in ANCHOR_MATCHES],
        seed=ANCHOR_SEED,
        workers=plan.settings.selfplay.workers,
        progress=progress,
        should_stop=should_stop,
    )
    with store.create(plan.config, plan.generation, ANCHOR_KIND, metadata=how) as draft:
        write_table(draft / "games.parquet", games, GAMES)
    return draft.artefact


def rate_all(store: Store, config: str, generation: int) -> Artefact:
    """Rate the baselines and every generation up to this one that was evaluated as it was.

    Games count whose models are those that the generations' evaluations are of, and that were
    played with as many simulations and from as random an opening as this generation's. Those of
    the newest `FITTED` generations do, and of whomever these met; a generation before them has the
    rating of the newest earlier list, if that has the same anchor and as many simulations.

    Files: ``ratings.parquet`` (`tables.RATING_LIST`), ``rating_list.md`` (the same for people),
    ``rating_curve.png`` (rating by generation with intervals, the baselines as lines). Metadata:
    ``games``, ``rated``, ``carried`` (rated by an earlier list), ``left_out`` (artefacts whose games
    did not count), ``anchor``, ``confidence``, ``dispersion``, ``champion_fall`` (the newest that
    passed its gate beside an earlier one, `anchors.worst_fall`; None where there is one alone),
    ``ratings`` (of the generations whose games were fitted: rating, low, high), ``inputs``.

    Returns:
        Artefact of kind ``rating_list``; the current one if it was made from the same games.

    Raises:
        MissingArtefactError: the generation has not been evaluated.
        RatingListError: none of its games can be rated.
    """
    import polars as pl

    from ringrift_pipeline.evaluation.anchors import worst_fall
    from ringrift_pipeline.evaluation.rating_curve import draw_curve, write_list
    from ringrift_pipeline.evaluation.tables import RATING_LIST
    from ringrift_pipeline.store import CorruptArtefactError
    from ringrift_pipeline.training.tables import write_table

    own = store.require(config, generation, EVALUATION)
    how = _evaluated(own).how
    known = [number for number in store.generations(config) if number <= generation]
    fitted = _fitted(store, config, known)
    reports = dict(_reports(store, config, fitted))
    models = {
        report["candidate"]["name"]: report["candidate"]["digest"] for report in reports.values()
    }
    sources, left_out = [], 0
    for source in _sources(store, config, known, fitted):
        if source.how == how:
            sources.append(source)
        else:
            left_out += 1
    inputs = [
        [source.artefact.generation, source.artefact.kind, source.artefact.digest]
        for source in sources
    ]
    before = _list_before(store, config, known) if len(fitted) < len(known) else None
    if before is not None:
        inputs.append([before.generation, KIND, before.digest])
    try:
        existing = store.current(config, generation, KIND)
    except CorruptArtefactError:
        existing = None
    current = existing is not None and "ratings" in existing.metadata  # not so of earlier versions
    if existing is not None and current and existing.metadata.get("inputs") == inputs:
        return existing
    games = _connected(_games(sources, models))
    if not games.height:
        raise RatingListError(
            f"no game of {config} up to generation {generation:04d} connects anybody with the "
            "heuristic or with random play"
        )
    confidence = float(reports[generation]["confidence"])
    fit = _fit(games, confidence)
    passed = {f"generation:{n:04d}": r["gate"]["promote"] for n, r in reports.items()}
    frame = _frame(fit, passed)
    champions = [name for name, let in passed.items() if let and name in fit.players]
    fall = asdict(worst_fall(fit, champions)) if len(champions) > 1 else None
    scale = {"anchor": fit.anchor, "simulations": how[0]}
    carried = 0
    if before is not None and scale.items() <= before.metadata.items():
        older = _carried(before, set(known) - set(fitted))
        carried = older.height
        frame = pl.concat([frame, older]).sort("rating", descending=True, maintain_order=True)
    metadata = {
        "inputs": inputs,
        "games": games.height,
        "rated": frame.height,
        "carried": carried,
        "left_out": left_out,
        "confidence": confidence,
        "dispersion": fit.dispersion,
        "champion_fall": fall,
        "ratings": {
            name.partition(":")[2]: [fit[name], *fit.interval(name)]
            for name in passed
            if name in fit.players
        },
        **scale,
    }
    with store.create(config, generation, KIND, metadata=metadata) as draft:
        write_table(draft / TABLE, frame, RATING_LIST)
        write_list(draft / LIST, frame, confidence)
        draw_curve(draft, frame, config, confidence)
    return draft.artefact


# -- whose games count ----------------------------------------------------------------------


def _fitted(store: Store, config: str, known: list[int]) -> list[int]:
    """Of the generations ``known``, ascending: the newest `FITTED`, and whom they met."""
    newest = known[-FITTED:]
    if len(newest) == len(known):
        return known
    met = {name for source in _sources(store, config, [], newest) for name in source.models}
    return [n for n in known if n >= newest[0] or f"generation:{n:04d}" in met]


def _list_before(store: Store, config: str, known: list[int]) -> Artefact | None:
    """The newest list of an earlier generation, of the last `FITTED` ones."""
    from ringrift_pipeline.store import CorruptArtefactError

    for generation in reversed(known[-FITTED - 1 : -1]):
        try:
            found = store.current(config, generation, KIND)
        except CorruptArtefactError:
            continue
        if found is not None:
            return found
    return None


def _carried(before: Artefact, older: set[int]) -> pl.DataFrame:
    """The rows of an earlier list that are of the generations ``older``."""
    import polars as pl

    from ringrift_pipeline.evaluation.tables import RATING_LIST
    from ringrift_pipeline.training.tables import read_table

    rows = read_table(before.file(TABLE), RATING_LIST)
    return rows.filter(pl.col("generation").is_in(sorted(older)))


def _reports(
    store: Store, config: str, generations: list[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    from ringrift_pipeline.store import CorruptArtefactError

    for generation in generations:
        try:
            found = store.current(config, generation, EVALUATION)
        except CorruptArtefactError:
            continue
        if found is not None:
            yield generation, found.read_json(EVALUATION_FILE)


def _evaluated(artefact: Artefact) -> _Source:
    report = artefact.read_json(EVALUATION_FILE)
    models = {
        f"generation:{generation:04d}": digest
        for generation, kind, digest in artefact.metadata["inputs"]["artefacts"]
        if kind == "ema_model"
    }
    return _Source(artefact, models, (report["simulations"], report["opening_decisions"]))


def _sources(store: Store, config: str, known: list[int], fitted: list[int]) -> Iterator[_Source]:
    """Everything that holds games, corrupt artefacts left out: the baselines' of the generations
    ``known``, the others' of those that are ``fitted``.
    """
    from ringrift_pipeline.store import CorruptArtefactError

    kinds = {generation: (ANCHOR_KIND,) for generation in known}
    kinds |= {
        generation: (*kinds.get(generation, ()), EVALUATION, GAUNTLET) for generation in fitted
    }
    for generation in sorted(kinds):
        for kind in kinds[generation]:
            try:
                found = store.current(config, generation, kind)
            except CorruptArtefactError:
                continue
            if found is None:
                continue
            if kind == EVALUATION:
                yield _evaluated(found)
            elif kind == ANCHOR_KIND:
                how = (found.metadata["simulations"], found.metadata["opening_decisions"])
                yield _Source(found, {}, how)
            else:
                report = found.read_json("report.json")
                if "models" in report:  # earlier versions did not say who was who
                    how = (report["simulations"], report["opening_decisions"])
                    yield _Source(found, report["models"], how)


def _games(sources: list[_Source], models: dict[str, str]) -> pl.DataFrame:
    """Games in which everybody is the model that its name stands for."""
    import polars as pl

    from ringrift_pipeline.evaluation.tables import GAMES
    from ringrift_pipeline.training.tables import read_frame

    schema: dict[str, Any] = {
        "players": pl.List(pl.String),
        "ranks": pl.List(pl.Int64),
        "set": pl.String,
    }
    tables = [pl.DataFrame(schema=schema)]
    for number, source in enumerate(sources):
        others = [name for name, digest in source.models.items() if models.get(name) != digest]
        games = read_frame(source.artefact.file("games.parquet"), len(GAMES)).filter(
            ~pl.col("players").list.eval(pl.element().is_in(others)).list.any()
        )
        sets = pl.format("{}/{}/{}", pl.lit(number), "match", "set").alias("set")
        tables.append(games.with_columns(sets).select("players", "ranks", "set"))
    return pl.concat(tables)


def _anchor(games: pl.DataFrame) -> str:
    names = set(games["players"].explode().unique().to_list())
    return ANCHOR if ANCHOR in names else RANDOM


def _connected(games: pl.DataFrame) -> pl.DataFrame:
    """The games of everybody whom a chain of games connects with the anchor."""
    import polars as pl

    reached = {_anchor(games)}
    groups = [set(players) for players in games["players"].unique().to_list()]
    while True:
        grown = reached.union(*(group for group in groups if group & reached))
        if grown == reached:
            break
        reached = grown
    here = pl.element().is_in(sorted(reached))
    return games.filter(pl.col("players").list.eval(here).list.all())


def _fit(games: pl.DataFrame, confidence: float) -> Ratings:
    anchor = _anchor(games)
    return fit_ratings(
        games,
        anchor=anchor,
        anchor_rating=ANCHOR_RATINGS[anchor],
        depth=1,
        confidence=confidence,
    )


def _frame(fit: Ratings, promoted: dict[str, bool]) -> pl.DataFrame:
    import polars as pl

    frame = fit.to_frame()
    numbers = [
        int(name.partition(":")[2]) if name.startswith("generation:") else None
        for name in frame["player"]
    ]
    return frame.with_columns(
        pl.Series("generation", numbers, pl.Int64),
        pl.Series("promoted", [promoted.get(name) for name in frame["player"]], pl.Boolean),
    )

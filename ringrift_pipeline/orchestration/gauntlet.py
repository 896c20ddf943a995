"""The gauntlet: the champion of a config against the baselines and its own predecessors.

A generation's evaluation meets random, heuristic and the champion of its day; ratings drift apart
over many such links. The gauntlet plays them all together and fits one scale.
"""

import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from dagster import AssetObservation, Config, MetadataValue, OpExecutionContext, job, op
from pydantic import Field

from ringrift_pipeline.orchestration.checks import require_sound
from ringrift_pipeline.orchestration.integrity import gauntlet_sound
from ringrift_pipeline.orchestration.metadata import FIRST, for_people, numbers
from ringrift_pipeline.orchestration.names import CHAMPION, asset_key, generation_key
from ringrift_pipeline.orchestration.pools import pool_of, tags_of
from ringrift_pipeline.orchestration.settings import ConfigName, refusing
from ringrift_pipeline.orchestration.step import LOST, Step, once, running_step
from ringrift_pipeline.store import Artefact, write_json_atomic
from ringrift_pipeline.store.kinds import GAUNTLET

if TYPE_CHECKING:
    import polars as pl

JOB = "champion_gauntlet"


class Baseline(StrEnum):
    """A player that never changes."""

    random = "random"
    heuristic = "heuristic"
    rollout = "rollout"


class GauntletConfig(Config):
    """What a gauntlet plays."""

    config: ConfigName = Field(description="Whose champion: square8_2p, …, hexagonal_4p.")
    games: int = Field(
        default=96, ge=2, le=1_000_000, description="Games against each opponent, seats rotated."
    )
    predecessors: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="Earlier champions met, newest first; the win rates of seven are plotted.",
    )
    baselines: list[Baseline] = Field(
        default=[str(one) for one in Baseline],  # type: ignore[misc]  # Dagster keeps it as JSON
        min_length=1,
        description="Players that never change: random, heuristic, rollout.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Root of openings and decisions.")


class NoChampionError(LookupError):
    """A gauntlet was asked for a config that has no champion."""


def run_gauntlet(step: Step, settings: GauntletConfig) -> Artefact:
    """Play the gauntlet and keep it as an artefact ``gauntlet`` of the champion's generation.

    Files: ``report.json`` (matches, ratings with intervals; the models by digest and how they
    played, so that the games count on the list of ratings) and ``games.parquet``.

    Raises:
        NoChampionError: there is no champion.
    """
    from ringrift_pipeline.evaluation import (
        Entrant,
        Match,
        fit_ratings,
        play_matches,
        set_interval,
        set_scores,
    )
    from ringrift_pipeline.evaluation.matches import OPENING_DECISIONS
    from ringrift_pipeline.evaluation.ratings import (
        ANCHOR_RATING,
        ANCHOR_RATINGS,
        shown_rating,
    )
    from ringrift_pipeline.evaluation.tables import GAMES
    from ringrift_pipeline.selfplay import load_plan
    from ringrift_pipeline.training.tables import write_table

    champion = step.store.champion(step.config)
    if champion is None:
        raise NoChampionError(f"{step.config} has no champion yet: run its generation job")
    plan = load_plan(step.store, step.config, champion.generation)
    seats = int(step.config[-2])
    models = {_name(champion.generation): champion}
    for earlier in reversed(step.store.champions(step.config)):
        if len(models) <= settings.predecessors:
            models.setdefault(_name(earlier.generation), earlier)
    specs = {name: str(model.path) for name, model in models.items()}
    specs |= {name: name for name in map(str, settings.baselines)}
    entrants = [
        Entrant(
            name,
            spec,
            simulations=plan.settings.evaluation.simulations,
            seed=settings.seed,
            data=str(step.store.root),
            device=plan.settings.device,
            settings=plan.settings.search,
            symmetries=plan.settings.evaluation.symmetries,
        )
        for name, spec in specs.items()
    ]
    mine = _name(champion.generation)
    matches = [
        Match(name, (mine, *[name] * (seats - 1)), max(1, settings.games // seats))
        for name in specs
        if name != mine
    ]
    games = play_matches(
        step.config,
        entrants,
        matches,
        seed=settings.seed,
        workers=plan.settings.selfplay.workers,
        progress=step.progress,
        should_stop=step.should_stop,
    )
    confidence = plan.settings.evaluation.confidence
    others = [name for name in specs if name != mine]
    anchored = next((name for name in ANCHOR_RATINGS if name in others), others[0])
    ratings = fit_ratings(
        _rated(games),
        anchor=anchored,
        anchor_rating=ANCHOR_RATINGS.get(anchored, ANCHOR_RATING),
        depth=1,
        confidence=confidence,
    )
    report: dict[str, Any] = {
        "config": step.config,
        "champion": mine,
        "models": {name: model.digest for name, model in models.items()},
        "simulations": plan.settings.evaluation.simulations,
        "opening_decisions": OPENING_DECISIONS,
        "matches": [],
    }
    before = [name for name in models if name != mine]
    shown: dict[str, Any] = {}
    for match in matches:
        scores = set_scores(games.filter(games["match"] == match.name), mine)
        low, high = set_interval(scores, seats, confidence)
        report["matches"].append(
            {"opponent": match.name, "win_rate": float(scores.mean()), "low": low, "high": high}
        )
        # one name for each place in the field: the champions before it are others every time
        named = (
            f"predecessor_{before.index(match.name) + 1}" if match.name in before else match.name
        )
        shown[f"eval/win_rate_{named}"] = float(scores.mean())
    report["ratings"] = {row.pop("player"): row for row in ratings.to_frame().to_dicts()}
    about = {
        **shown_rating(report["ratings"], mine),
        "eval/games": games.height,
        **shown,
    }
    with step.store.create(step.config, champion.generation, GAUNTLET, metadata=about) as draft:
        write_json_atomic(draft / "report.json", report)
        write_table(draft / "games.parquet", games, GAMES)
    return draft.artefact


def _rated_list(step: Step) -> dict[str, Any]:
    """List and curve of all ratings, the gauntlet's games among them; nothing where no generation
    has been evaluated.
    """
    from ringrift_pipeline.evaluation.rating_list import rate_all

    evaluated = step.store.newest(step.config, "evaluation")
    return {} if evaluated is None else for_people(rate_all(step.store, step.config, evaluated))


def _name(generation: int) -> str:
    return f"generation:{generation_key(generation)}"


def _rated(games: "pl.DataFrame") -> "pl.DataFrame":
    import polars as pl

    sets = pl.format("{}/{}", "match", "set").alias("set")
    return games.with_columns(sets).select("players", "ranks", "set")


@op(
    name="gauntlet",
    required_resource_keys={"store"},
    pool=pool_of("gauntlet"),
    retry_policy=LOST,
    tags=tags_of("gauntlet"),
    description="Plays a champion against baselines and predecessors and observes the asset.",
)
def gauntlet(context: OpExecutionContext, config: GauntletConfig) -> None:
    """One config's gauntlet."""
    name = str(config.config)
    with once():
        champion = context.resources.store.open().champion(name)
    generation = champion.generation if champion is not None else 0
    with once(), running_step(context, name, generation) as step:
        artefact = run_gauntlet(step, config)
        require_sound(gauntlet_sound, step)  # before its games are rated
        context.log_event(
            AssetObservation(
                asset_key(name, CHAMPION),
                description=f"Gauntlet of generation {generation_key(artefact.generation)}",
                metadata={
                    **numbers(artefact.metadata, FIRST[CHAMPION]),
                    "path": MetadataValue.path(artefact.path),
                    **_rated_list(step),
                },
            )
        )


@job(
    name=JOB,
    description="The champion of one config against the baselines and its predecessors, rated on "
    "one scale. The result is an observation of the champion.",
)
def champion_gauntlet() -> None:
    """One op."""
    refusing(gauntlet, GauntletConfig)()


def week_seed(when: datetime.datetime) -> int:
    """The seed of a week's gauntlet: new openings every week, the same for a repeated run."""
    year, week, _ = when.isocalendar()
    return year * 100 + week

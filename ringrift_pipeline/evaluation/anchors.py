"""Every candidate and every champion of a config rated anew against fixed anchors.

The loop rates a generation against the champion of its day, so a slow fall could hide in a chain of
such links. Here every model meets the same players that never change, from the same openings:
random play, the heuristic, rollout search with a fixed number of playouts, generation 0 and, of five
generations and more, the one in the middle, which still wins games where the others do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.evaluation.ratings import ANCHOR, Ratings, fit_ratings

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.evaluation.tournament import Played
    from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
    from ringrift_pipeline.store import Store

__all__ = [
    "AnchoredModel",
    "AnchoredRatings",
    "Fall",
    "find_falls",
    "rate_against_anchors",
    "worst_fall",
]


@dataclass(frozen=True)
class AnchoredModel:
    """One generation's candidate.

    Attributes:
        generation: that made it.
        name: ``generation:NNNN``, as in `AnchoredRatings.fit`.
        champion: whether it ever was champion.
        verdict: what the gate said of it, empty where it was not evaluated.
        shares: share of the win against each anchor, by the anchor's name.
    """

    generation: int
    name: str
    champion: bool
    verdict: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Fall:
    """A model weaker than an earlier one of its list, beyond the interval of their difference.

    Attributes:
        model, earlier: names.
        difference, low, high: Elo, of the two ratings; high < 0.
    """

    model: str
    earlier: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class AnchoredRatings:
    """All models on one scale.

    Attributes:
        models: by generation.
        anchors: names of the anchors in `fit`.
        fit: the ratings, the heuristic at 1200.
        games: all games, `matches.GAMES_SCHEMA`.
        candidate_falls: among all models, in the order of their generations.
        champion_falls: among those that were champion.
    """

    models: tuple[AnchoredModel, ...]
    anchors: tuple[str, ...]
    fit: Ratings
    games: pl.DataFrame
    candidate_falls: tuple[Fall, ...]
    champion_falls: tuple[Fall, ...]


def rate_against_anchors(
    store: Store,
    config: str,
    *,
    games: int = 200,
    simulations: int = 64,
    playouts: int = 64,
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
    confidence: float = 0.95,
    played: Played | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> AnchoredRatings:
    """Rate every generation's model that the store holds.

    Args:
        store, config: whose.
        games: of each model against each anchor, seats rotated; >= 2.
        simulations: of each model's search, a decision.
        playouts: of the rollout search, a decision.
        seed: of openings and decisions.
        workers: processes; 0 means one a core. Changes nothing in the result.
        device: of the networks.
        confidence: of the intervals; where a model is compared with several, of all together.
        played: where finished games are kept; those of the same models and arguments alone.
        progress, should_stop: as `tournament.play_matches` takes them.

    Raises:
        ValueError: no generation has a model, or games < 2.
        Interrupted: if asked to stop.
    """
    from ringrift_pipeline.evaluation.matches import set_scores
    from ringrift_pipeline.evaluation.tournament import Entrant, Match, play_matches
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.selfplay import load_plan

    if games < 2:
        raise ValueError(f"games must be at least 2, got {games}")
    found = {
        generation: model
        for generation in store.generations(config)
        if (model := store.current(config, generation, "ema_model")) is not None
    }
    if not found:
        raise ValueError(f"{store.root} holds no model of {config}: run ringrift loop first")
    seats = get_rules(config).players
    sets = max(1, games // seats)
    rollout = f"rollout@{playouts}"
    search = load_plan(store, config, max(found)).settings.search
    entrants = [
        Entrant("random", "random", seed=seed),
        Entrant(ANCHOR, ANCHOR, seed=seed),
        Entrant(rollout, "rollout", simulations=playouts, seed=seed),
    ]
    entrants += [
        Entrant(
            _name(generation),
            str(model.path),
            simulations=simulations,
            seed=seed,
            data=str(store.root),
            device=device,
            settings=search,
        )
        for generation, model in found.items()
    ]
    numbers = sorted(found)
    fixed = [numbers[0], numbers[len(numbers) // 2]] if len(numbers) >= 5 else numbers[:1]
    anchors = ("random", ANCHOR, rollout, *map(_name, fixed))
    pairs = [(rollout, ANCHOR), (ANCHOR, "random")]
    pairs += [
        (_name(generation), anchor)
        for generation in found
        for anchor in anchors
        # Of two generations that are anchors, the later one meets the earlier one, once.
        if anchor != _name(generation) and (generation != numbers[0] or anchor != _name(fixed[-1]))
    ]
    table = play_matches(
        config,
        entrants,
        [Match(f"{one} - {other}", (one, *[other] * (seats - 1)), sets) for one, other in pairs],
        seed=seed,
        workers=workers,
        played=played,
        progress=progress,
        should_stop=should_stop,
    )
    import polars as pl

    sets_of = pl.format("{}/{}", "match", "set").alias("set")
    fit = fit_ratings(
        table.with_columns(sets_of).select("players", "ranks", "set"),
        depth=1,
        confidence=confidence,
    )
    crowned = {(one.generation, one.digest) for one in store.champions(config)}
    models = tuple(
        AnchoredModel(
            generation,
            _name(generation),
            (generation, model.digest) in crowned,
            _verdict(store, config, generation),
            {
                anchor: float(set_scores(own, _name(generation)).mean())
                for anchor in anchors
                if (
                    own := table.filter(pl.col("match") == f"{_name(generation)} - {anchor}")
                ).height
            },
        )
        for generation, model in found.items()
    )
    return AnchoredRatings(
        models,
        anchors,
        fit,
        table,
        find_falls(fit, [model.name for model in models]),
        find_falls(fit, [model.name for model in models if model.champion]),
    )


def find_falls(fit: Ratings, names: Sequence[str]) -> tuple[Fall, ...]:
    """Each of ``names``, in their order, that is weaker than an earlier one beyond doubt.

    A model is compared with all before it; the intervals are those of all these comparisons
    together (Bonferroni). Of several it fell below, the one with the largest certain difference.
    """
    worst = [worst_fall(fit, names[: place + 1]) for place in range(1, len(names))]
    return tuple(fall for fall in worst if fall.high < 0.0)


def worst_fall(fit: Ratings, names: Sequence[str]) -> Fall:
    """The last of ``names``, two at least, beside that of those before it which it is most certainly
    below; the interval is that of all these comparisons together (Bonferroni).
    """
    *before, name = names
    joint = dataclasses.replace(fit, confidence=1.0 - (1.0 - fit.confidence) / len(before))
    return min(
        (Fall(name, earlier, *joint.difference(name, earlier)) for earlier in before),
        key=lambda fall: fall.high,
    )


def _name(generation: int) -> str:
    return f"generation:{generation:04d}"


def _verdict(store: Store, config: str, generation: int) -> str:
    from ringrift_pipeline.store import CorruptArtefactError
    from ringrift_pipeline.store.kinds import EVALUATION, EVALUATION_FILE

    try:
        evaluation = store.current(config, generation, EVALUATION)
    except CorruptArtefactError:
        return ""
    if evaluation is None:
        return ""
    gate: dict[str, Any] = evaluation.read_json(EVALUATION_FILE)["gate"]
    return ("passed: " if gate["promote"] else "refused: ") + str(gate["reasons"][0])

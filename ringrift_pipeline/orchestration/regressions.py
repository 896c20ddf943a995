"""Judgements that see what gets worse from one generation to the next: stale data, drift, a
candidate that the gate refuses. What they are to each other and to ``judgements`` see there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringrift_pipeline.orchestration.judgements import Judgement
from ringrift_pipeline.orchestration.metadata import MOST_NUMBERS
from ringrift_pipeline.orchestration.step import Step
from ringrift_pipeline.store import CorruptArtefactError

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.config_stages import WatchConfig
    from ringrift_pipeline.evaluation.drift import Drift


def window_fresh(step: Step) -> Judgement:
    """The training window holds shards of the champion, and its newest shards are not old."""
    from ringrift_pipeline.training import judge_window

    judged = judge_window(step.store, step.plan())
    return Judgement(judged.fresh, judged.why, judged.numbers)


def parent_trained_on(step: Step) -> Judgement:
    """Training went on from the weights of the plan's parent, where the plan names one."""
    about = step.store.require(step.config, step.generation, "checkpoint").metadata
    if about.get("parent_generation") is None:
        return Judgement(True, "the plan names no parent: fresh weights")
    note = str(about.get("parent_note"))
    if "val/gain" in about:
        return Judgement(True, note)
    return Judgement(
        False,
        f"{note}; what generation {about['parent_generation']:04d} had learned is not in this model",
    )


def play_steady(step: Step) -> Judgement:
    """Game length, draws, seat advantage and policy entropy stay in the last generations' range.

    Student's t of each figure against those of earlier generations that the same kind of player
    played, and how far it has come since the oldest of them (see `evaluation.drift`); a warning,
    for a reason may be welcome. Every figure's chance is shown, then as many of their ranges as fit.
    """
    from ringrift_pipeline.evaluation.drift import LEAST_EARLIER, crept, measure_drift

    watch = step.plan().settings.watch
    now = step.store.require(step.config, step.generation, "selfplay_shards").metadata
    figures: dict[str, dict[str, float]] = now.get("measures") or {}
    earlier = _earlier(step, str(now.get("selfplay/player")), watch.drift_generations)
    two = "seat_3_share" not in figures
    figures = {name: one for name, one in figures.items() if not (two and name == "seat_2_share")}
    seats = sum(name.startswith("seat_") for name in figures)
    left: list[str] = []
    numbers: dict[str, float | int | str] = {"drift/earlier": len(earlier)}
    ranges: list[dict[str, float]] = []
    for name, figure in figures.items():
        past = [(one[name]["value"], one[name]["error"]) for one in earlier if name in one]
        now_is = figure["value"], figure["error"]
        # the seats' shares sum to 1: together they are one thing that is measured
        level = watch.drift_level / (seats if name.startswith("seat_") else 1)
        drift = measure_drift(past, *now_is, level)
        if drift is None:
            continue
        numbers[f"drift/{name}_chance"] = drift.chance
        ranges.append({f"drift/{name}_low": drift.low, f"drift/{name}_high": drift.high})
        if drift.drifted:
            left.append(_told(name, drift))
        elif crept(past[0], now_is, **_most(name, watch)):
            left.append(
                f"{_words(name)} went from {past[0][0]:.4g} to {drift.value:.4g} within "
                f"{len(past)} generations"
            )
    for both in ranges[: (MOST_NUMBERS - len(numbers)) // 2]:
        numbers |= both
    if left:
        return Judgement(False, "; ".join(left), numbers)
    if len(numbers) == 1:
        return Judgement(
            True,
            f"{len(earlier)} earlier generations to compare with, {LEAST_EARLIER} are needed",
            numbers,
        )
    return Judgement(True, f"in the range of the last {len(earlier)} generations", numbers)


def _earlier(step: Step, player: str, most: int) -> list[dict[str, Any]]:
    """The measures of the last generations that this kind of player played, oldest first."""
    found: list[dict[str, Any]] = []
    for generation in reversed(step.store.generations(step.config)):
        if generation >= step.generation or len(found) == most:
            continue
        try:
            index = step.store.current(step.config, generation, "selfplay_shards", verify=False)
        except CorruptArtefactError:
            continue
        if index is None or index.metadata.get("selfplay/player") != player:
            continue
        measures = dict(index.metadata.get("measures") or {})  # earlier versions measured none
        if "selfplay/cut_short" not in index.metadata:  # or took games cut short for draws
            measures.pop("draw_rate", None)
        if measures:
            found.append(measures)
    return found[::-1]


def _most(name: str, watch: WatchConfig) -> dict[str, float]:
    """How far a figure may go, as `crept` takes it."""
    if name in ("plies", "policy_entropy"):
        return {"factor": watch.drift_factor}
    return {"change": watch.drift_share}


def _words(name: str) -> str:
    words = {"plies": "game length", "draw_rate": "draw rate", "policy_entropy": "policy entropy"}
    return words.get(name) or f"seat {name.split('_')[1]}'s share of the win"


def _told(name: str, drift: Drift) -> str:
    return (
        f"{_words(name)} {drift.value:.4g} leaves {drift.low:.4g} to {drift.high:.4g}, the range of the "
        f"last {drift.earlier} generations (chance {drift.chance:.2g})"
    )


def gate_passed(step: Step) -> Judgement:
    """The gate lets the candidate through; where it does not, why, and who plays on."""
    report = step.store.require(step.config, step.generation, "evaluation").read_json("report.json")
    gate = report["gate"]
    reasons = "; ".join(str(reason) for reason in gate["reasons"])
    numbers: dict[str, float | int | str] = {}
    for match in report["matches"]:
        numbers[f"{match['opponent']} wins"] = (
            f"{match['win_rate']:.1%} ({match['low']:.1%} to {match['high']:.1%}) of "
            f"{match['games']} games, even is {match['even']:.1%}"
        )
    if gate["sprt"] is not None:
        numbers["eval/sprt_llr"] = gate["sprt"]["llr"]
    if gate["promote"]:
        return Judgement(True, f"the gate lets it through: {reasons}", numbers)
    champion = report["champion"]
    who = f"{champion['name']} stays champion" if champion else "there is still no champion"
    return Judgement(False, f"promotion refused, {who}: {reasons}", numbers)


def champions_rise(step: Step) -> Judgement:
    """On the list of all ratings, one fit over the games of the newest 200 generations and of whom they
    met, the newest that passed the gate is not beyond doubt below an earlier one: promotions that each
    look like progress may lead in a circle. What is judged is the difference of the two; what is uncertain of both alike, as how far
    the heuristic is below them, does not count.
    """
    from ringrift_pipeline.evaluation import rating_list

    artefact = step.store.current(step.config, step.generation, rating_list.KIND)
    if artefact is None:
        return Judgement(True, "there is no list of ratings: the command line's verbs make none")
    if "champion_fall" not in artefact.metadata:
        return Judgement(True, "a version before made this list: the next one compares them")
    fall = artefact.metadata["champion_fall"]
    if fall is None:
        return Judgement(True, "of the newest generations no two have passed the gate")
    fell = fall["high"] < 0.0
    return Judgement(
        not fell,
        f"{fall['model']}, the newest to pass the gate, is {fall['difference']:+.0f} Elo "
        f"({fall['low']:+.0f} to {fall['high']:+.0f}) from {fall['earlier']}: "
        + ("below it beyond doubt" if fell else "below none before it beyond doubt"),
        {"eval/elo_champion_gain": fall["difference"]},
    )

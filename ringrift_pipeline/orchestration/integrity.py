"""Judgements of what rests on what: tables and shards are what their schemas say, no game is on
both sides of the split, the gate's verdict follows from the games. What they are to each other and
to ``judgements`` see there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.orchestration.judgements import MOST_COPIES, Judgement
from ringrift_pipeline.orchestration.step import Step

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from ringrift_pipeline.selfplay import Plan
    from ringrift_pipeline.training import Window
    from ringrift_pipeline.training.tables import Column

# Columns of a shard whose rows are judged; the encoded planes are most of a shard and not among them.
JUDGED = (
    "game_id",
    "game",
    "ply",
    "moves",
    "policy",
    "selected",
    "outcome",
    "root_value",
    "search_value",
    "surprise",
    "game_plies",
    "reason",
)


def _schema(step: Step, kind: str, tables: dict[str, tuple[Column, ...]]) -> Judgement:
    """Every table of the artefact, read again with its pandera schema."""
    from ringrift_pipeline.training.tables import TableError, read_table

    artefact = step.store.require(step.config, step.generation, kind)
    numbers: dict[str, float | int | str] = {}
    for file, columns in tables.items():
        try:
            numbers[f"{file} rows"] = read_table(artefact.file(file), columns).height
        except TableError as error:
            return Judgement(False, str(error), numbers)
    return Judgement(True, f"{' and '.join(tables)}: as the schema says", numbers)


def scores_schema(step: Step) -> Judgement:
    """The table of quality scores has exactly its columns, types and bounds, every number finite."""
    from ringrift_pipeline.training.quality import TABLE
    from ringrift_pipeline.training.tables import QUALITY_SCORES

    return _schema(step, "quality_scores", {TABLE: QUALITY_SCORES})


def examples_schema(step: Step) -> Judgement:
    """The table of hard examples has exactly its columns, types and bounds, every number finite."""
    from ringrift_pipeline.training.hard_examples import TABLE
    from ringrift_pipeline.training.tables import HARD_EXAMPLES

    return _schema(step, "hard_examples", {TABLE: HARD_EXAMPLES})


def bins_schema(step: Step) -> Judgement:
    """The table of calibration bins has exactly its columns, types and bounds, all finite."""
    from ringrift_pipeline.training.calibrating import BINS
    from ringrift_pipeline.training.tables import CALIBRATION_BINS

    return _schema(step, "calibration_report", {BINS: CALIBRATION_BINS})


def games_schema(step: Step) -> Judgement:
    """The tables of games, of ratings, of the list of all ratings and of the baselines' games that it
    rests on have exactly their columns, types and bounds; the baselines' are whole rotated sets.
    """
    from ringrift_pipeline.evaluation import evaluating, rating_list, tables

    files = {evaluating.GAMES: tables.GAMES, evaluating.RATINGS: tables.RATINGS}
    made = _schema(step, "evaluation", files)
    if not made.passed:
        return made
    listed = step.store.current(step.config, step.generation, rating_list.KIND)
    if listed is None:
        return made  # the command line's verbs make no list
    found = _schema(step, rating_list.KIND, {rating_list.TABLE: tables.RATING_LIST})
    for generation, kind, _ in listed.metadata.get("inputs", ()):
        if found.passed and kind == rating_list.ANCHOR_KIND:
            found = _anchors(replace(step, generation=generation))
    return made if found.passed else found


def _anchors(step: Step) -> Judgement:
    """The baselines' games of a generation: the table, and whole rotated sets of each match."""
    import polars as pl

    from ringrift_pipeline.evaluation import evaluating, rating_list, set_scores, tables

    of = f"{rating_list.ANCHOR_KIND} of generation {step.generation:04d}"
    made = _schema(step, rating_list.ANCHOR_KIND, {evaluating.GAMES: tables.GAMES})
    if not made.passed:
        return Judgement(False, f"{of}: {made.why}", made.numbers)
    artefact = step.store.require(step.config, step.generation, rating_list.ANCHOR_KIND)
    games, seats = evaluating.games_of(artefact), int(step.config[-2])
    left = games.height
    for one, other in rating_list.ANCHOR_MATCHES:
        played = games.filter(pl.col("match") == one)
        odd = _odd_game(played, other, seats)
        if odd is not None:
            return Judgement(False, f"{of}: {odd}")
        sets = len(set_scores(played, one))
        if sets != artefact.metadata["sets"]:
            wanted = artefact.metadata["sets"]
            return Judgement(False, f"{of}: {sets} sets of {one}, {wanted} were to be played")
        left -= played.height
    return Judgement(not left, f"{of}: {left} games are of no match of the baselines")


def gauntlet_sound(step: Step) -> Judgement:
    """The last gauntlet's table of games has exactly its columns, types and bounds, and holds the
    games that its report tells of: whole rotated sets of the champion against each opponent, with
    the win rates that the report gives.
    """
    from ringrift_pipeline.evaluation import evaluating, tables
    from ringrift_pipeline.store.kinds import GAUNTLET

    for champion in reversed(step.store.champions(step.config)):
        artefact = step.store.current(step.config, champion.generation, GAUNTLET)
        if artefact is not None:
            break
    else:
        return Judgement(True, "no champion has played a gauntlet")
    of = f"gauntlet of generation {artefact.generation:04d}"
    files = {evaluating.GAMES: tables.GAMES}
    made = _schema(replace(step, generation=artefact.generation), GAUNTLET, files)
    if not made.passed:
        return Judgement(False, f"{of}: {made.why}", made.numbers)
    games = evaluating.games_of(artefact)
    report = artefact.read_json("report.json")
    seats = int(step.config[-2])
    odd = _odd_match(games, str(report.get("champion")), report.get("matches", ()), seats)
    return Judgement(
        odd is None,
        f"{of}: {odd or f'{games.height} games in whole rotated sets, as its report says'}",
        {"eval/games": games.height},
    )


def _odd_match(
    games: pl.DataFrame, player: str, matches: Iterable[dict[str, Any]], seats: int
) -> str | None:
    """What is wrong with the games of a player's matches, or with what a report says of them, in
    words; None if nothing is.
    """
    import polars as pl

    from ringrift_pipeline.evaluation import set_scores

    rates = {match["opponent"]: match["win_rate"] for match in matches}
    told, found = sorted(rates), sorted(set(games["match"]))
    if told != found:
        return f"the report tells of matches with {told}, there are games with {found}"
    odd = _odd_game(games, player, seats)
    if odd is not None:
        return odd
    for opponent, rate in rates.items():
        scores = set_scores(games.filter(pl.col("match") == opponent), player)
        if abs(float(scores.mean()) - rate) > 1e-9:
            return f"the report says {rate:.4f} against {opponent}, its games {scores.mean():.4f}"
    return None


def _odd_game(games: pl.DataFrame, player: str, seats: int) -> str | None:
    """Which games cannot be of a player against whomever their match is named after, in words; None
    if all can.
    """
    import polars as pl

    lists = pl.col("players", "ranks", "shares")
    short = games.filter(pl.any_horizontal(lists.list.len() != seats)).height
    if short:
        return f"{short} games have not one player, rank and share of the win for each seat"
    others = pl.col("players").list.set_difference(pl.concat_list(pl.lit(player), "match"))
    strangers = games.filter(others.list.len() > 0).height
    if strangers:
        return f"{strangers} games have a player who is not of their match"
    first = pl.col("winner").cast(pl.Int64) - 1
    wins = pl.col("ranks").list.get(first, null_on_oob=True).eq_missing(0)
    wins &= pl.col("shares").list.get(first, null_on_oob=True).eq_missing(1.0)
    whole = (pl.col("shares").list.sum() - 1.0).abs() < 1e-9
    wrong = games.filter(~(whole & (wins | (first < 0)))).height
    if wrong:
        return f"{wrong} games have a winner, ranks and shares of the win that do not agree"
    return None


def ablation_sound(step: Step) -> Judgement:
    """The table of the generation's ablation, where there is one, has exactly its columns, types and
    bounds, and its rows give the verdicts that are told.
    """
    from ringrift_pipeline.evaluation import ablation, tables
    from ringrift_pipeline.evaluation.ablation_report import verdicts
    from ringrift_pipeline.training.tables import read_table

    artefact = step.store.current(step.config, step.generation, ablation.KIND)
    if artefact is None:
        return Judgement(True, "no ablation of this generation")
    rows = read_table(artefact.file(ablation.FRAME), tables.ABLATION).to_dicts()
    told, found = artefact.metadata["verdicts"], verdicts(rows)
    if told != found:
        return Judgement(False, f"its verdicts are {told}, its table gives {found}")
    return Judgement(True, f"{ablation.FRAME}: as the schema says, {len(rows)} comparisons")


def shards_sound(step: Step) -> Judgement:
    """Every shard has the Arrow schema of its format, and no row that play cannot have made.

    Policies are distributions over the row's legal moves, of which the one played is one; shares
    of the win and values are distributions over the seats; surprise is finite; plies ascend within
    a game and end before it does.
    """
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, ShardError, read_shard
    from ringrift_pipeline.selfplay.soundness import first_fault

    rows = 0
    for shard in step.plan().shards:
        kind = f"selfplay-shard-{shard['index']:04d}"
        artefact = step.store.require(step.config, step.generation, kind)
        try:
            table = read_shard(artefact.file(SHARD_FILE), JUDGED)
        except ShardError as error:
            return Judgement(False, str(error))
        fault = first_fault(table)
        if fault is not None:
            return Judgement(False, f"{kind}: {fault}", {"rows": rows})
        rows += table.num_rows
    return Judgement(True, f"{rows} rows are what play can have made", {"selfplay/rows": rows})


def no_leakage(step: Step) -> Judgement:
    """No game was both trained on and held out, none in disguise, and no held-out row was mined.

    By the window that the checkpoint was trained on: the side of every row of a game, the moves
    played (a copy under another id would be the same game), the rows of the hard examples. By the
    plans of the models that it was trained from: what their windows had and they did not hold out.
    """
    import numpy as np
    import polars as pl

    from ringrift_pipeline.selfplay import iter_shards
    from ringrift_pipeline.selfplay.collecting import moves_of_games
    from ringrift_pipeline.training import build_window, open_window
    from ringrift_pipeline.training.hard_examples import read_hard_examples

    plan = step.plan()
    artefact = build_window(step.store, plan, should_stop=step.should_stop)
    checkpoint = step.store.require(step.config, step.generation, "checkpoint")
    if checkpoint.metadata["window"] != artefact.digest:
        return Judgement(False, "the checkpoint was trained on another window than this one")
    window = open_window(artefact.path)
    games = len(window.games)
    held_rows = np.bincount(window.game, window.holdout, minlength=games)
    rows = np.bincount(window.game, minlength=games)
    both = (held_rows > 0) & (held_rows < rows)
    held = held_rows > 0
    numbers: dict[str, float | int | str] = {
        "training games": int((~held).sum()),
        "held-out games": int(held.sum()),
    }
    if both.any():
        game = window.games[int(both.argmax())]
        return Judgement(False, f"{int(both.sum())} games are on both sides: {game} …", numbers)
    if not held.any() or held.all():
        return Judgement(False, "one side of the split is empty", numbers)
    seen = _trained_before(step, plan, window, held)
    if seen is not None:
        return Judgement(False, seen, numbers)
    if plan.settings.mining.enabled:
        examples = step.store.require(step.config, step.generation, "hard_examples")
        mined = window.holdout[read_hard_examples(examples).rows]
        if mined.any():
            return Judgement(False, f"{int(mined.sum())} hard examples are of held-out games")
    played = moves_of_games(iter_shards(step.store, plan, **step.hooks())).join(
        pl.DataFrame({"game_id": list(window.games), "held": held}), on="game_id"
    )
    if played.height != games:
        return Judgement(
            False, f"the window has {games} games, its shards have {played.height} of them", numbers
        )
    ours = played.filter(pl.col("held"))
    copies = ours.join(played.filter(~pl.col("held")), on="selected", how="semi").height
    share = copies / ours.height
    return Judgement(
        share <= MOST_COPIES,
        f"{copies} of {ours.height} held-out games are move for move also in the training games",
        {**numbers, "val/leaked_share": share},
    )


def _trained_before(step: Step, plan: Plan, window: Window, held: NDArray[np.bool_]) -> str | None:
    """Which games that are ``held`` out now, (G,) bool, a model was trained on from which this one
    was; None if there are none. Whether it was is what its own plan says, whatever ours makes of it.
    """
    import numpy as np

    from ringrift_pipeline.training.split import is_held_out

    played = np.zeros(len(held), np.int64)
    played[window.game] = window.generation
    older = np.flatnonzero(held & (played < plan.generation))
    for ancestor in _ancestors(step, plan, int(played.min())):
        fraction = ancestor.settings.training.holdout_fraction
        read = [ancestor.generation, *(entry["generation"] for entry in ancestor.window)]
        seen = [
            window.games[game]
            for game in older[np.isin(played[older], read)]
            if not is_held_out(window.games[game], fraction)
        ]
        if seen:
            return (
                f"{len(seen)} held-out games were trained on by generation "
                f"{ancestor.generation:04d}, which held out a share of {fraction:g}: {seen[0]} …"
            )
    return None


def _ancestors(step: Step, plan: Plan, oldest: int) -> Iterator[Plan]:
    """Plans of the models of this config that a plan's weights come from, newest first, as far back
    as ``oldest``. In place of one that was removed stands the newest before it.
    """
    from ringrift_pipeline.selfplay import load_plan

    parent = plan.parent
    for generation in reversed(step.store.generations(step.config)):
        if parent is None or parent.get("config", step.config) != step.config:
            return
        if oldest <= generation <= parent["generation"]:
            ancestor = load_plan(step.store, step.config, generation)
            yield ancestor
            parent = ancestor.parent


def gate_sound(step: Step) -> Judgement:
    """The matches that were to be played were, and the gate's verdict is what its rules say of their
    games, against the plan's champion.
    """
    from ringrift_pipeline.evaluation import evaluating

    plan = step.plan()
    artefact = step.store.require(step.config, step.generation, "evaluation")
    report = artefact.read_json(evaluating.REPORT)
    digests = [(one or {}).get("digest") for one in (report["champion"], plan.champion)]
    if digests[0] != digests[1]:
        return Judgement(
            False,
            f"it was judged against {digests[0] or 'no champion'}, the plan's champion is "
            f"{digests[1] or 'none'}",
        )
    games = evaluating.games_of(artefact)
    candidate, seats = report["candidate"]["name"], int(step.config[-2])
    odd = _odd_match(games, candidate, report["matches"], seats)
    if odd is not None:
        return Judgement(False, odd)
    again = evaluating.decide_again(step.store, plan, artefact)
    said = report["gate"]
    if not same_verdict(said, again.to_dict()):
        told = said if isinstance(said, dict) else {}
        return Judgement(
            False,
            f"the report says promote={told.get('promote')} "
            f"({'; '.join(map(str, told.get('reasons', ())))}), its games say "
            f"promote={again.promote} ({'; '.join(again.reasons)})",
        )
    return Judgement(
        True,
        f"the games recorded give the same verdict: {'promote' if again.promote else 'refuse'}",
        {"eval/promote": int(again.promote)},
    )


def same_verdict(said: Any, found: Any) -> bool:
    """Whether two of the gate's decisions, as data, are one: the verdict and the numbers it rests on,
    to rounding, in whatever words. An earlier version's reasons are no other verdict, nor is what it
    noted besides.
    """
    try:
        promoted = said["promote"] is found["promote"]
        tests = _numbers_of_test(said["sprt"]), _numbers_of_test(found["sprt"])
        floors = [sorted(map(_numbers_of_floor, one["floors"])) for one in (said, found)]
    except (KeyError, TypeError):
        return False
    return promoted and _close(*tests) and _close(*floors)


def _numbers_of_test(test: Any) -> Any:
    return test and (test["verdict"], test["sets"], test["score"], test["llr"])


def _numbers_of_floor(floor: Any) -> Any:
    return floor["baseline"], floor["required"], floor["passed"], floor["share"]


def _close(one: Any, two: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_close, one, two))
    if isinstance(one, float) and isinstance(two, float | int):
        return math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-9)
    return bool(one == two)

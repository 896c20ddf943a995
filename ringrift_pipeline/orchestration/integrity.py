"""Judgements of what rests on what: tables and shards are what their schemas say, no game is on
both sides of the split, the gate's verdict follows from the games. What they are to each other and
to ``judgements`` see there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringrift_pipeline.orchestration.judgements import MOST_COPIES, Judgement
from ringrift_pipeline.orchestration.step import Step

if TYPE_CHECKING:
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
    """The tables of games, of ratings and of the list of all ratings have exactly their columns,
    types and bounds.
    """
    from ringrift_pipeline.evaluation import evaluating, rating_list, tables

    files = {evaluating.GAMES: tables.GAMES, evaluating.RATINGS: tables.RATINGS}
    made = _schema(step, "evaluation", files)
    if (
        not made.passed
        or step.store.current(step.config, step.generation, rating_list.KIND) is None
    ):
        return made  # the command line's verbs make no list
    listed = _schema(step, rating_list.KIND, {rating_list.TABLE: tables.RATING_LIST})
    return made if listed.passed else listed


def shards_sound(step: Step) -> Judgement:
    """Every shard has the Arrow schema of its format, and no row that play cannot have made.

    Policies are distributions over the row's legal moves, of which the one played is one; shares
    of the win and values are distributions over the seats; surprise is finite; plies ascend within
    a game and end before it does.
    """
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, ShardError, open_shard
    from ringrift_pipeline.selfplay.soundness import first_fault

    rows = 0
    for shard in step.plan().shards:
        kind = f"selfplay-shard-{shard['index']:04d}"
        artefact = step.store.require(step.config, step.generation, kind)
        try:
            with open_shard(artefact.file(SHARD_FILE), JUDGED) as reader:
                table = reader.read_all()
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
    played (a copy under another id would be the same game), the rows of the hard examples.
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


def gate_sound(step: Step) -> Judgement:
    """The gate's verdict is what its rules say of the games recorded, against the plan's champion."""
    from ringrift_pipeline.evaluation.evaluating import decide_again

    plan = step.plan()
    artefact = step.store.require(step.config, step.generation, "evaluation")
    report = artefact.read_json("report.json")
    digests = [(one or {}).get("digest") for one in (report["champion"], plan.champion)]
    if digests[0] != digests[1]:
        return Judgement(
            False,
            f"it was judged against {digests[0] or 'no champion'}, the plan's champion is "
            f"{digests[1] or 'none'}",
        )
    again, said = decide_again(step.store, plan, artefact), report["gate"]
    if again.promote != said["promote"] or again.reasons != said["reasons"]:
        return Judgement(
            False,
            f"the report says promote={said['promote']} ({'; '.join(said['reasons'])}), its games "
            f"say promote={again.promote} ({'; '.join(again.reasons)})",
        )
    return Judgement(
        True,
        f"the games recorded give the same verdict: {'promote' if again.promote else 'refuse'}",
        {"eval/promote": int(again.promote)},
    )

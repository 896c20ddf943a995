"""Matches over jobs and processes, with the project's own baseline players."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from ringrift_pipeline.evaluation.matches import MatchError, set_scores
from ringrift_pipeline.evaluation.tournament import (
    JOB_GAMES,
    Entrant,
    Match,
    TournamentError,
    play_matches,
)
from ringrift_pipeline.search.errors import PlayerSpecError
from ringrift_pipeline.selfplay.stopping import Interrupted

CONFIG = "square8_2p"
RANDOM, HEURISTIC = Entrant("random", "random"), Entrant("heuristic", "heuristic")
TWO = [RANDOM, HEURISTIC]


def match(sets: int, name: str = "m", **arguments) -> Match:
    return Match(name, ("heuristic", "random"), sets, **arguments)


def test_workers_change_nothing() -> None:
    matches = [match(JOB_GAMES // 2 + 2), match(2, "other")]
    alone = play_matches(CONFIG, TWO, matches, seed=1, workers=1)
    together = play_matches(CONFIG, TWO, matches, seed=1, workers=2)
    assert alone.equals(together)
    assert alone["match"].unique(maintain_order=True).to_list() == ["m", "other"]
    assert alone.height == 2 * (JOB_GAMES // 2 + 4)
    own = alone.filter(pl.col("match") == "m")
    assert own["set"].to_list() == sorted(own["set"].to_list())
    # matches share their openings
    openings = {name: group["opening"].to_list() for (name,), group in alone.group_by("match")}
    assert openings["other"] == openings["m"][:4]


def test_the_heuristic_beats_random() -> None:
    games = play_matches(CONFIG, TWO, [match(16)], seed=2, workers=1)
    assert set_scores(games, "heuristic").mean() > 0.7


def test_three_players() -> None:
    line_up = ("heuristic", "random", "random")
    games = play_matches("square8_3p", TWO, [Match("m", line_up, 4)], seed=2, workers=1)
    assert games.height == 12
    assert len(set_scores(games, "heuristic")) == 4


def test_a_decided_match_ends_after_the_job_that_decides_it() -> None:
    asked: list[int] = []

    def decided(games: pl.DataFrame) -> bool:
        asked.append(games.height)
        return games.height >= 2 * JOB_GAMES

    seen: list[tuple[int, int]] = []
    games = play_matches(
        CONFIG,
        TWO,
        [match(2 * JOB_GAMES, decided=decided)],
        seed=3,
        workers=1,
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert asked == [JOB_GAMES, 2 * JOB_GAMES]
    assert games.height == 2 * JOB_GAMES
    assert seen[-1] == (2 * JOB_GAMES, 2 * JOB_GAMES)
    assert seen[0][1] == 4 * JOB_GAMES
    whole = play_matches(CONFIG, TWO, [match(2 * JOB_GAMES)], seed=3, workers=1)
    assert games.equals(whole.head(2 * JOB_GAMES))


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping(workers: int) -> None:
    with pytest.raises(Interrupted):
        play_matches(CONFIG, TWO, [match(400)], seed=4, workers=workers, should_stop=lambda: True)


def test_a_player_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlayerSpecError, match="holds no model.json"):
        play_matches(
            CONFIG,
            [RANDOM, Entrant("broken", str(tmp_path), device="cpu")],
            [Match("m", ("broken", "random"), 40)],
            seed=5,
            workers=2,
        )


def test_a_worker_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    def kill(done: int, total: int, message: str) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, 9)

    with pytest.raises(TournamentError, match="died"):
        play_matches(CONFIG, TWO, [match(2000)], seed=6, workers=2, progress=kill)


def test_what_cannot_be_played_is_refused() -> None:
    with pytest.raises(MatchError, match="nobody is called 'heuristic'"):
        play_matches(CONFIG, [RANDOM], [match(1)], seed=0)
    with pytest.raises(MatchError, match="at least one set"):
        play_matches(CONFIG, TWO, [match(0)], seed=0)
    with pytest.raises(MatchError, match="same name"):
        play_matches(CONFIG, TWO, [match(1), match(1)], seed=0)
    with pytest.raises(ValueError, match="workers"):
        play_matches(CONFIG, TWO, [match(1)], seed=0, workers=-1)

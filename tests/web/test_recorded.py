"""Recorded games: every ply is what the shard holds, and nothing else can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ringrift_pipeline.drawing import describe
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import new_game
from ringrift_pipeline.selfplay import plan_generation, play_shards, read_shard, shard_kind
from ringrift_pipeline.store import Store
from ringrift_pipeline.web.games import RecordedGames

from .conftest import CONFIG, NOW, TINY, Client, running


def rows_of(data: Path, generation: int, shard: int) -> list[dict[str, Any]]:
    artefact = Store(data).require(CONFIG, generation, shard_kind(shard))
    return read_shard(artefact.file("shard.arrow")).to_pylist()


def test_games_are_found_level_by_level(client: Client, data: Path) -> None:
    assert client.get("/api/games").json["items"] == [{"config": CONFIG, "generations": 2}]
    assert client.get(f"/api/games/{CONFIG}").json["items"] == [
        {"generation": "0001", "player": "generation 0000", "shards": 2},
        {"generation": "0000", "player": "the heuristic", "shards": 2},
    ]
    shards = client.get(f"/api/games/{CONFIG}/0001").json["items"]
    assert [(item["shard"], item["games"]) for item in shards] == [("0000", 2), ("0001", 1)]
    assert shards[0]["positions"] == len(rows_of(data, 1, 0))
    games = client.get(f"/api/games/{CONFIG}/0001/0000").json["items"]
    rows = rows_of(data, 1, 0)
    assert [game["id"] for game in games] == list(dict.fromkeys(row["game_id"] for row in rows))
    for number, game in enumerate(games):
        own = [row for row in rows if row["game"] == number]
        assert game["plies"] == own[0]["game_plies"] and game["decisions"] == len(own)
        assert game["surprise"] == pytest.approx(sum(row["surprise"] for row in own) / len(own))
        shares = own[0]["outcome"]
        assert game["winners"] == [seat for seat in (1, 2) if shares[seat - 1] == max(shares)]


@pytest.mark.parametrize("generation", [0, 1])
def test_every_ply_is_what_was_recorded(client: Client, data: Path, generation: int) -> None:
    place = f"/api/games/{CONFIG}/{generation:04d}/0001/0000"
    game = client.get(place).json
    rows = {row["ply"]: row for row in rows_of(data, generation, 1)}
    assert [entry["ply"] for entry in game["timeline"]] == list(rows)
    state = new_game(CONFIG)
    for ply, code in enumerate(game["moves"]):
        shown = client.get(f"{place}?ply={ply}").json
        record = state.to_record()
        for name in ("stacks", "markers", "collapsed", "hand", "player", "phase"):
            assert shown["position"][name] == record[name]
        move = next(move for move in state.legal_moves() if move.code == code)
        assert shown["played"]["text"] == describe(move.to_record())
        assert shown["played"]["forced"] is (ply not in rows)
        if ply in rows:
            check(shown["decision"], rows[ply], describe(move.to_record()))
        else:
            assert shown["decision"] is None
        state = state.apply(move)
    end = client.get(f"{place}?ply={game['plies']}").json
    assert state.is_terminal and end["played"] is None and end["decision"] is None
    assert end["position"]["winner"] == state.winner


@pytest.fixture()
def cut(data: Path, tmp_path: Path) -> Iterator[tuple[Client, str, int]]:
    """The heuristic's games again, cut short where one of them has forced plies ahead of it: a
    client, that game's place, and its length.
    """
    for shard, game, ply in forced_plies(data):
        store = Store(tmp_path / "cut")
        settings = TrainingConfig().with_overrides({**TINY, "selfplay.max_plies": ply})
        play_shards(store, plan_generation(store, CONFIG, 0, settings, NOW), workers=1)
        for client in running(store.root):
            yield client, f"{CONFIG}/0000/{shard:04d}/{game:04d}", ply
        return
    raise AssertionError("no ply of these games was forced")


def forced_plies(data: Path) -> Iterator[tuple[int, int, int]]:
    """(shard, game, ply) of generation 0: the first forced ply of each game."""
    for shard in (0, 1):
        rows = rows_of(data, 0, shard)
        for game in {row["game"] for row in rows}:
            own = [row for row in rows if row["game"] == game]
            plies = {row["ply"] for row in own}
            for ply in range(8, own[0]["game_plies"]):
                if ply not in plies:
                    yield shard, game, ply
                    break


def test_a_game_that_was_cut_short_ends_where_it_did(cut: tuple[Client, str, int]) -> None:
    client, place, length = cut
    game = client.get(f"/api/games/{place}").json
    assert game["plies"] == len(game["moves"]) == length
    assert game["reason"] == "cut short" and game["winners"] == []
    end = client.get(f"/api/games/{place}?ply={length}").json
    assert end["played"] is None and end["position"]["winner"] is None
    assert len(end["position"]["svg"]) and end["position"]["ranking"] is None
    assert client.get(f"/api/games/{place}?ply={length + 1}").status == 404
    listed = client.get(f"/api/games/{place.rsplit('/', 1)[0]}").json["items"]
    assert next(one for one in listed if one["game"] == place[-4:])["winners"] == []


def check(decision: dict[str, Any], row: dict[str, Any], played: str) -> None:
    assert decision["full_search"] is row["full_search"] and decision["opponent"] is row["opponent"]
    heuristics = row["game_id"].startswith(f"{CONFIG}-0000-")
    assert decision["surprise"] == (None if heuristics else pytest.approx(row["surprise"]))
    for name in ("root_value", "search_value"):
        assert decision[name] == pytest.approx(row[name])
    assert decision["legal"] == len(row["moves"])
    policy = dict(zip(row["moves"], row["policy"], strict=True))
    shares = [move["share"] for move in decision["moves"]]
    assert shares == pytest.approx(sorted(policy.values(), reverse=True)[: len(shares)])
    for move in decision["moves"]:
        assert move["share"] == pytest.approx(policy[move["code"]])
        assert move["played"] is (move["code"] == row["selected"])
        assert move["played"] is (move["text"] == played)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("hex8_2p", "config"),
        ("square9_2p", "config"),
        ("..", "config"),
        (f"{CONFIG}/0007", "generation"),
        (f"{CONFIG}/1", "generation"),
        (f"{CONFIG}/-001", "generation"),
        (f"{CONFIG}/%2e%2e", "generation"),
        (f"{CONFIG}/..%2f..%2fetc", "generation"),
        (f"{CONFIG}/0001/0009", "shard"),
        (f"{CONFIG}/0001/plan.json", "shard"),
        (f"{CONFIG}/0001/%2e%2e/0000", "shard"),
        (f"{CONFIG}/0001/ema_model", "shard"),
        (f"{CONFIG}/0001/0000/0002", "game"),
        (f"{CONFIG}/0001/0000/١٢٣٤".encode().decode("latin-1"), "game"),
        (f"{CONFIG}/0001/0000/0000/0000", None),
        (f"{CONFIG}/0001/0000/0000?ply=99999", "ply"),
    ],
)
def test_what_is_not_there_is_not_found(client: Client, path: str, field: str | None) -> None:
    answer = client.get(quote(f"/api/games/{path}", safe="/%?=", encoding="latin-1"))
    assert answer.status == 404
    assert answer.json["field"] == field


@pytest.mark.parametrize("ply", ["-1", "x", "1.5", "", "9999999", "%C2%B2"])
def test_a_ply_is_a_number(client: Client, ply: str) -> None:
    answer = client.get(f"/api/games/{CONFIG}/0001/0000/0000?ply={ply}")
    assert answer.status == 422 and answer.json["field"] == "ply"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/games/../../etc/passwd",
    ],
)
def test_no_other_file_is_served(client: Client, path: str) -> None:
    answer = client.get(path)
    assert b"starlette" not in answer.data and b"root:" not in answer.data
    assert answer.status == 404 or answer.data == client.get("/").data


def test_looking_changes_nothing(client: Client, data: Path) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        found = (path for path in data.rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}

    before = files()
    for path in (
        "",
        f"/{CONFIG}",
        f"/{CONFIG}/0000",
        f"/{CONFIG}/0000/0000",
        f"/{CONFIG}/0000/0000/0001",
    ):
        assert client.get(f"/api/games{path}").status == 200
    assert client.get("/api/setup").status == 200
    assert files() == before


def test_a_damaged_shard_says_so_and_the_others_are_shown(damaged: Client) -> None:
    broken, whole, lost = damaged.get(f"/api/games/{CONFIG}/0001").json["items"]
    assert "shard.arrow" in broken.pop("error")
    assert broken == {"shard": "0000", "games": None, "positions": None}
    assert whole["shard"] == "0001" and whole["games"] == 1 and "error" not in whole
    assert "no artefact that verifies" in lost.pop("error")
    assert lost == {"shard": "0002", "games": None, "positions": None}
    for path in (f"{CONFIG}/0001/0000", f"{CONFIG}/0001/0000/0000"):
        answer = damaged.get(f"/api/games/{path}")
        assert answer.status == 409 and "shard.arrow" in answer.json["error"]
    assert damaged.get(f"/api/games/{CONFIG}/0001/0001/0000?ply=2").status == 200


def test_the_list_of_generations_reads_no_plan(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is as long as its window: all of them would cost as the square of a history."""
    read: list[int] = []
    real = Store.read_plan

    def read_plan(store: Store, config: str, generation: int) -> dict[str, Any]:
        read.append(generation)
        return real(store, config, generation)

    monkeypatch.setattr(Store, "read_plan", read_plan)
    items = client.get(f"/api/games/{CONFIG}").json["items"]
    assert [item["player"] for item in items] == ["generation 0000", "the heuristic"]
    assert read == []


def test_shards_that_do_not_say_who_played_have_it_in_the_plan(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "artefacts", lambda *_: [])
    items = RecordedGames(data).generations(CONFIG)
    assert [item["player"] for item in items] == ["generation 0000", "the heuristic"]


def test_a_damaged_plan_says_so_and_its_games_are_shown(damaged: Client) -> None:
    broken, whole = damaged.get(f"/api/games/{CONFIG}").json["items"]
    assert "plan.json is corrupt" in broken.pop("error")
    assert broken == {"generation": "0001", "player": None, "shards": 3}
    assert whole == {"generation": "0000", "player": "the heuristic", "shards": 2}


def test_the_heuristics_games_have_no_surprise(client: Client) -> None:
    games = client.get(f"/api/games/{CONFIG}/0000/0000").json["items"]
    assert games and all(game["surprise"] is None for game in games)
    game = client.get(f"/api/games/{CONFIG}/0000/0000/0000").json
    assert {entry["surprise"] for entry in game["timeline"]} == {None}

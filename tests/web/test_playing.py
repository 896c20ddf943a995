"""Games over HTTP: what the server answers is what the rules and the players say."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringrift_pipeline.drawing import describe
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import CONFIGS, State, new_game
from ringrift_pipeline.network import Evaluator
from ringrift_pipeline.search import NetworkPlayer, SearchStopped, load_player, stoppable
from ringrift_pipeline.store import Store
from ringrift_pipeline.web import Players, RequestError
from ringrift_pipeline.web.positions import Game

from .conftest import CONFIG, Client, running, save_model


def after(config: str, moves: list[int], swap_rule: bool = False) -> State:
    state = new_game(config, swap_rule)
    for code in moves:
        state = state.apply_code(code)
    return state


def position(client: Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/position", body)
    assert answer.status == 200, answer.data
    return answer.json


def choose(client: Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/choose", body)
    assert answer.status == 200, answer.data
    return answer.json


@pytest.mark.parametrize(("config", "player"), [(CONFIG, "heuristic"), ("hex8_3p", "random")])
def test_a_whole_game_against_a_player(client: Client, config: str, player: str) -> None:
    """Seat 1 plays at random from what is offered; every answer is checked by the rules."""
    rng = random.Random(3)
    shown = position(client, config=config, moves=[])
    log = list(shown["played"])
    while shown["position"]["player"] is not None:
        moves, seat = shown["moves"], shown["position"]["player"]
        state = after(config, moves)
        assert seat == state.current_player and shown["position"]["phase"] == state.phase
        assert [move["code"] for move in shown["legal"]] == state.legal_codes()
        assert len(shown["legal"]) > 1  # forced moves are played by the server
        if seat == 1:
            moves = [*moves, rng.choice(shown["legal"])["code"]]
            shown = position(client, config=config, moves=moves, since=len(log))
        else:
            before, asked = moves, {"player": player, "seed": 5, "since": len(log)}
            shown = choose(client, config=config, moves=moves, **asked)
            assert shown["moves"][: len(before)] == before
        log += shown["played"]
    state = after(config, shown["moves"])
    assert state.is_terminal and shown["legal"] == []
    assert shown["position"]["winner"] == state.winner
    assert shown["position"]["ranking"] == state.ranking()
    assert shown["position"]["reason"] == state.reason
    record = state.to_record()
    for name in ("stacks", "markers", "collapsed", "hand", "eliminated", "territory"):
        assert shown["position"][name] == record[name], name
    check, texts = new_game(config), []
    for code in shown["moves"]:
        move = next(move for move in check.legal_moves() if move.code == code)
        forced = len(check.legal_codes()) == 1
        texts.append((check.current_player, describe(move.to_record()), forced))
        check = check.apply(move)
    assert [(ply["seat"], ply["text"], ply["forced"]) for ply in log] == texts


def test_every_config_can_be_played(client: Client) -> None:
    setup = client.get("/api/setup").json
    assert list(setup["configs"]) == list(CONFIGS)
    for config, about in setup["configs"].items():
        state = new_game(config)
        shown = position(client, config=config)
        assert about["seats"] == state.rules.players == len(shown["position"]["hand"])
        assert len(shown["legal"]) == len(state.legal_codes())
        assert shown["position"]["svg"].count("data-cell") == state.rules.num_cells
        assert shown["position"]["rings_to_win"] == state.rules.ring_threshold
    assert setup["configs"][CONFIG]["networks"] == ["champion", "generation:0000"]
    assert setup["configs"]["hex8_2p"]["networks"] == []
    assert setup["defaults"]["config"] == CONFIG


def test_a_move_says_which_cells_it_touches(client: Client) -> None:
    shown = position(client, config=CONFIG)
    placing = next(m for m in shown["legal"] if m["text"] == "place_ring to 3,4 count 2")
    assert (placing["path"], placing["area"]) == (["3,4"], [])
    shown = position(client, config=CONFIG, moves=[placing["code"]])
    assert {tuple(move["path"][:1]) for move in shown["legal"]} == {("3,4",)}
    assert shown["position"]["svg"].count('class="last"') == 1


def test_the_same_seed_plays_the_same_game(client: Client) -> None:
    def game(seed: int) -> list[int]:
        moves: list[int] = []
        for _ in range(12):
            asked = {"player": "random", "seed": seed}
            moves = choose(client, config="square8_3p", moves=moves, **asked)["moves"]
        return moves

    assert game(1) == game(1) != game(2)


def test_the_pie_rule_is_offered_where_it_is_asked_for(client: Client) -> None:
    def offered(swap_rule: bool) -> list[str]:
        game: dict[str, Any] = {"config": CONFIG, "swap_rule": swap_rule}
        shown = position(client, **game)
        while shown["position"]["player"] == 1:
            moves = [*shown["moves"], shown["legal"][0]["code"]]
            shown = position(client, **game, moves=moves)
        if swap_rule:
            swap = next(move for move in shown["legal"] if move["text"] == "swap_sides")
            assert not shown["position"]["swapped"]
            moves = [*shown["moves"], swap["code"]]
            assert position(client, **game, moves=moves)["position"]["swapped"]
        return [move["text"] for move in shown["legal"]]

    assert "swap_sides" in offered(True)
    assert "swap_sides" not in offered(False)


# --- players --------------------------------------------------------------------------------------


def test_a_network_says_what_it_thinks_and_plays_it(client: Client, data: Path) -> None:
    state = new_game(CONFIG)
    asked = {"config": CONFIG, "moves": [], "player": "champion", "simulations": 8}
    found = client.post("/api/analyze", asked).json
    player = load_player("champion", CONFIG, simulations=8, data=data, device="cpu")
    analysis = player.analyze(state)
    best = np.argsort(-analysis.policy, kind="stable")
    assert [move["code"] for move in found["moves"]] == [
        analysis.moves[i].code for i in best[: len(found["moves"])]
    ]
    assert found["moves"][0]["share"] == pytest.approx(analysis.policy.max())
    assert found["visits"] == analysis.visits.sum() > 0
    assert found["moves"][0]["visits"] == analysis.visits[best[0]]
    assert found["temperature"] == 2.0 and "calibration report" in found["calibration"]
    assert found["chances"] == pytest.approx(analysis.value.tolist())
    squared = np.array(found["chances"]) ** 2.0  # at temperature 2 chances are roots of the value
    assert found["value"] == pytest.approx((squared / squared.sum()).tolist())
    assert found["value"] != pytest.approx(found["chances"], abs=1e-6)
    assert choose(client, **asked)["moves"][0] == player.choose(state).code


def test_the_best_moves_are_drawn_on_the_board(client: Client) -> None:
    asked = {"config": CONFIG, "player": "heuristic"}
    best = client.post("/api/analyze", asked).json
    drawn = [f">{move['share']:.0%}<" for move in best["moves"][:5] if move["share"] >= 0.01]
    assert drawn and 'class="shares"' in best["position"]["svg"]
    assert all(label in best["position"]["svg"] for label in drawn)
    assert best["visits"] == 0 and best["temperature"] == 1.0


def test_a_models_folder_plays(data: Path) -> None:
    champion = Store(data).champion(CONFIG)
    assert champion is not None
    folder, asked = str(champion.path), {"simulations": 2, "seed": 0}
    for client in running(data, players=Players(data, device="cpu", folders=(folder,))):
        assert client.get("/api/setup").json["folders"] == [folder]
        by_name = choose(client, config=CONFIG, player="champion", **asked)
        assert choose(client, config=CONFIG, player=folder, **asked) == by_name
        larger = choose(client, config="square19_2p", player=folder, simulations=1)
        assert len(larger["moves"]) >= 1


def test_the_page_tells_of_no_folder_that_was_not_named(
    client: Client, data: Path, tmp_path: Path
) -> None:
    """Any user of this machine may ask."""
    champion = Store(data).champion(CONFIG)
    assert champion is not None
    said = set()
    for folder in (champion.path, tmp_path, tmp_path / "absent"):
        asked = {"config": CONFIG, "moves": [], "player": str(folder), "simulations": 1}
        answer = client.post("/api/choose", asked)
        assert answer.status == 422
        said.add(answer.json["error"].replace(str(folder), ""))
    assert len(said) == 1


def test_other_requests_are_answered_while_a_player_thinks(client: Client) -> None:
    asked = {"config": "square8_2p", "moves": [], "player": "rollout", "simulations": 10_000}
    choose(client, **{**asked, "simulations": 1})  # compiled before the clock runs
    thinking = threading.Thread(target=choose, args=(client,), kwargs=asked)
    thinking.start()
    answered = 0
    while thinking.is_alive():
        assert client.get("/static/icon.svg").status == 200
        answered += thinking.is_alive()
    assert answered > 3


def test_few_players_are_kept_and_a_new_champion_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_plan(CONFIG, 0, {})
    first = save_model(store, seed=1)
    players = Players(tmp_path, device="cpu", kept=2)
    state = new_game(CONFIG)
    for spec in ("champion", "random", "heuristic", "rollout"):
        players.choose(state, spec, 2, seed=0)
    assert [key[1] for key in players._seats] == ["heuristic", "rollout"]
    players.choose(state, "champion", 2, seed=0)
    second = save_model(store, seed=2)
    players.choose(state, "champion", 2, seed=0)
    assert [key[-1] for key in players._seats] == [first.digest, second.digest]


def test_a_generation_made_anew_is_noticed(tmp_path: Path) -> None:
    players = Players(tmp_path, device="cpu")
    game = Game(new_game(CONFIG))
    thought = []
    for seed in (1, 2):
        save_model(Store(tmp_path), seed=seed)
        player = load_player("generation:0000", CONFIG, simulations=2, data=tmp_path, device="cpu")
        thought.append(players.analyze(game, "generation:0000", 2)["chances"])
        assert thought[-1] == pytest.approx(player.analyze(game.state).value.tolist())
    assert thought[0] != pytest.approx(thought[1])


def test_four_seats_and_an_analyst_stay_loaded(data: Path) -> None:
    players = Players(data, device="cpu")
    specs = ("generation:0000", "champion", "random", "heuristic", "rollout")
    for spec in specs:
        players.load(CONFIG, spec, 1)
    before = dict(players._seats)
    for spec in specs:
        players.load(CONFIG, spec, 1)
    assert len(before) == len(specs) and dict(players._seats) == before


def test_only_named_folders_are_opened(tmp_path: Path) -> None:
    model = save_model(Store(tmp_path / "data"), seed=1)
    players = Players(tmp_path / "data", device="cpu", folders=(str(model.path),))
    for spec in (str(model.path), "champion", "random"):
        players.load(CONFIG, spec, 1)
    with pytest.raises(RequestError, match="no player that this server offers"):
        players.load(CONFIG, str(model.path.parent), 1)


def test_networks_search_with_the_settings_that_the_page_was_started_with(data: Path) -> None:
    search = TrainingConfig().with_overrides({"search.backend": "torch"}).search
    players = Players(data, device="cpu", settings=search)
    players.load(CONFIG, "champion", 2)
    (seat,) = players._seats.values()
    assert isinstance(seat.player, NetworkPlayer)
    assert isinstance(seat.player.evaluator, Evaluator) and seat.player.evaluator.backend == "torch"


# --- what nobody waits for any longer -------------------------------------------------------------


def test_a_search_whose_client_hangs_up_is_given_up(data: Path) -> None:
    """The search under way ends, and that of another, which waited for the player, never begins."""
    players = Players(data, device="cpu")
    asked = {"config": CONFIG, "moves": [], "player": "champion", "simulations": 10_000}
    players.load(CONFIG, "champion", 10_000)
    (seat,) = players._seats.values()
    assert isinstance(seat.player, NetworkPlayer)
    pool = seat.player.search._kept_pool(1, 10_000)
    for client in running(data, players=players):
        port = client.access.port
        connections = [http.client.HTTPConnection("127.0.0.1", port) for _ in range(2)]
        for connection in connections:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/api/choose", json.dumps(asked), headers)
        while not pool.evaluations:
            time.sleep(0.001)
        for connection in connections:
            connection.close()
        with seat.lock:
            pass
        assert pool.evaluations < 5_000


def test_who_has_given_up_gets_no_player(tmp_path: Path) -> None:
    players = Players(tmp_path)
    with stoppable(lambda: True), pytest.raises(SearchStopped):
        players.choose(new_game(CONFIG), "random", 1, seed=0)
    assert [seat.player for seat in players._seats.values()] == [None]
    assert players.choose(new_game(CONFIG), "random", 1, seed=0) > 0


# --- what is refused ------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("position", {"config": "square9_2p"}, "config"),
    ("position", {"config": ["square8_2p"]}, "config"),
    ("position", {}, "config"),
    ("position", {"config": "square8_3p", "swap_rule": True}, "swap_rule"),
    ("position", {"config": CONFIG, "swap_rule": 1}, "swap_rule"),
    ("position", {"config": CONFIG, "moves": "all"}, "moves"),
    ("position", {"config": CONFIG, "moves": [True]}, "moves"),
    ("position", {"config": CONFIG, "moves": [1.5]}, "moves"),
    ("position", {"config": CONFIG, "moves": [10**400]}, "moves"),
    ("position", {"config": CONFIG, "moves": [0] * 20_001}, "moves"),
    ("position", {"config": CONFIG, "since": -1}, "since"),
    ("choose", {"config": CONFIG}, "player"),
    ("choose", {"config": CONFIG, "player": "nobody"}, "player"),
    ("choose", {"config": CONFIG, "player": "human"}, "player"),
    ("choose", {"config": CONFIG, "player": "generation:0042"}, "player"),
    ("choose", {"config": CONFIG, "player": "generation:" + "9" * 5_000}, "player"),
    ("choose", {"config": "hex8_2p", "player": "champion"}, "player"),
    ("choose", {"config": CONFIG, "player": "../../etc/passwd"}, "player"),
    ("choose", {"config": CONFIG, "player": "random", "simulations": 0}, "simulations"),
    ("choose", {"config": CONFIG, "player": "random", "simulations": 10**9}, "simulations"),
    ("choose", {"config": CONFIG, "player": "random", "seed": -1}, "seed"),
    ("analyze", {"config": CONFIG, "player": "nobody"}, "player"),
]


@pytest.mark.parametrize(("route", "body", "field"), BAD)
def test_bad_input_is_refused_by_field(
    client: Client, route: str, body: dict[str, Any], field: str
) -> None:
    answer = client.post(f"/api/{route}", body)
    assert answer.status == 422
    assert answer.json["field"] == field and len(answer.json["error"]) > 10


def test_an_illegal_move_is_refused_and_says_where(client: Client) -> None:
    legal = [move["code"] for move in position(client, config=CONFIG)["legal"]]
    absent = max(legal) + 1
    assert absent not in legal
    answer = client.post("/api/position", {"config": CONFIG, "moves": [absent]})
    assert answer.status == 422 and answer.json["field"] == "moves"
    assert "moves[0]" in answer.json["error"] and "ring_placement" in answer.json["error"]
    twice = client.post("/api/position", {"config": CONFIG, "moves": [legal[0], legal[0]]})
    assert twice.status == 422 and "moves[1]" in twice.json["error"]


def test_a_finished_game_has_no_move_to_choose(client: Client) -> None:
    state, moves = new_game(CONFIG), []
    while not state.is_terminal:
        moves.append(state.legal_codes()[-1])
        state = state.apply_code(moves[-1])
    for route in ("choose", "analyze"):
        answer = client.post(
            f"/api/{route}", {"config": CONFIG, "moves": moves, "player": "random"}
        )
        assert answer.status == 422 and "over" in answer.json["error"]
    more = client.post("/api/position", {"config": CONFIG, "moves": [*moves, moves[-1]]})
    assert more.status == 422 and "the game is over" in more.json["error"]


def test_a_network_that_overflows_is_named_with_the_position(data: Path, tmp_path: Path) -> None:
    """No move is played by it, and nothing of its analysis is shown."""
    import torch

    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork
    from ringrift_pipeline.network import save_model as save

    root = Path(shutil.copytree(data, tmp_path / "data"))
    model = RingRiftNetwork(NetworkConfig(1, 8, 8), seed=1)
    with torch.no_grad():
        model.policy.kind_bias.weight.fill_(3e38)
        model.policy.kind_bias.bias.fill_(3e38)
    store = Store(root)
    with store.create(CONFIG, 2, "ema_model") as draft:
        save(draft, model, {})
    store.promote(CONFIG, 2, draft.artefact, {"test": True})
    for client in running(root):
        for path in ("/api/choose", "/api/analyze"):
            body = {"config": CONFIG, "moves": [], "player": "champion", "simulations": 2}
            answer = client.post(path, body)
            assert answer.status == 500, answer.data
            assert answer.json["error"].startswith(
                f"champion ({draft.artefact.path}) gives a policy"
            )
            assert "fault of this server" not in answer.json["error"]
            record = json.loads(answer.json["error"].partition("position: ")[2])
            assert State.from_record(record).config == CONFIG

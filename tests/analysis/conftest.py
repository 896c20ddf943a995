"""An engine to talk to, games to send it, and untrained champions of all configs."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.analysis import Engine, Roster
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import CONFIGS, State, get_rules, new_game
from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model
from ringrift_pipeline.search import Player
from ringrift_pipeline.store import Store

CONFIG = "square8_2p"
TEMPERATURE = 2.5  # of the champion of square8_3p
EXACT = TrainingConfig().with_overrides({"search.precision": "float32"}).search

Told = dict[str, Any]


class Desk:
    """An engine, and what it has answered."""

    def __init__(self, roster: Roster, config: str = CONFIG, visits: int = 8) -> None:
        self.roster = roster
        self.told: list[Told] = []
        self.engine = Engine(config, visits, roster, self.told.append)

    def send(self, *queries: Told | bytes) -> None:
        for query in queries:
            self.engine.receive(query if isinstance(query, bytes) else json.dumps(query).encode())

    def heard(self) -> list[Told]:
        """What was answered since this was asked last."""
        told = list(self.told)
        self.told.clear()
        return told

    def finish(self) -> list[Told]:
        """Work until nothing waits."""
        while self.engine.waiting:
            self.engine.step()
        return self.heard()

    def ask(self, **query: Any) -> list[Told]:
        self.send({"id": "q", **query})
        return self.finish()


class Bench(Roster):
    """A roster with players that have no files."""

    def __init__(self, **players: Player) -> None:
        super().__init__(next(iter(players), "heuristic"))
        self.players = players

    def player(self, spec: str, config: str, visits: int) -> Player:
        return self.players.get(spec) or super().player(spec, config, visits)


@functools.cache
def game(config: str = CONFIG, seed: int = 0, swap: bool = False) -> tuple[list[Told], list[State]]:
    """The moves of a random game, as records, and all its positions."""
    rng = random.Random(seed)
    states, moves = [new_game(config, swap_rule=swap)], []
    while not states[-1].is_terminal:
        move = rng.choice(states[-1].legal_moves())
        moves.append(move.to_record())
        states.append(states[-1].apply(move))
    return moves, states


def forced(state: State) -> bool:
    return len(state.legal_codes()) == 1


@pytest.fixture(scope="session")
def champions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small untrained champion of every config."""
    store = Store(tmp_path_factory.mktemp("champions"))
    for config in CONFIGS:
        rules = get_rules(config)
        shape = NetworkConfig(1, 8, 4, rules.geometry, rules.players)
        with store.create(config, 0, "ema_model") as draft:
            save_model(draft, RingRiftNetwork(shape, seed=3), {})
        store.write_plan(config, 0, {"settings": TrainingConfig().to_dict()})
        store.promote(config, 0, draft.artefact, {"why": "test"})
        if config == "square8_3p":
            with store.create(
                config, 0, "calibration_report", metadata={"model": draft.artefact.digest}
            ) as report:
                said = {"format": 1, "temperature": TEMPERATURE}
                (report / "report.json").write_text(json.dumps(said))
    return store.root


@pytest.fixture(scope="session")
def network_roster(champions: Path) -> Roster:
    return Roster("champion", data=champions, device="cpu", settings=EXACT)


@pytest.fixture
def desk(network_roster: Roster) -> Desk:
    return Desk(network_roster)


@pytest.fixture
def plain() -> Desk:
    """An engine whose queries ask the heuristic unless they name another."""
    return Desk(Roster("heuristic"))

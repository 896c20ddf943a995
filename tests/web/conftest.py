"""A small data root with recorded games and a model, and a real server on it."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tiny import PLAYED

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.selfplay import plan_generation, play_shards, shard_kind
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.store.layout import MANIFEST
from ringrift_pipeline.web import Access, Players, create_app, listen
from ringrift_pipeline.web.serving import server_of

CONFIG = "square8_2p"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TINY = {
    **PLAYED,
    "seed": 7,
    "selfplay.games": 3,
    "selfplay.games_per_shard": 2,
    "selfplay.parallel_games": 2,
}


def save_model(store: Store, seed: int, generation: int = 0) -> Artefact:
    """Land a small untrained network and make it the champion."""
    from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model

    with store.create(CONFIG, generation, "ema_model") as draft:
        save_model(draft, RingRiftNetwork(NetworkConfig(1, 8, 8), seed=seed), {})
    store.promote(CONFIG, generation, draft.artefact, {"test": True})
    return draft.artefact


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generation 0 played by the heuristic, 1 by an untrained network; read it, do not change it."""
    store = Store(tmp_path_factory.mktemp("web"))
    settings = TrainingConfig().with_overrides(TINY)
    play_shards(store, plan_generation(store, CONFIG, 0, settings, NOW), workers=1)
    model = save_model(store, seed=1)
    with store.create(CONFIG, 0, "calibration_report", {"model": model.digest}) as draft:
        report = {"format": 1, "temperature": 2.0}
        (draft / "report.json").write_text(json.dumps(report))
    play_shards(store, plan_generation(store, CONFIG, 1, settings, NOW), workers=1)
    return store.root


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True)
class Client:
    """Requests to a server of this test run; ``Host`` is the right one unless it is given."""

    access: Access

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.access.port, timeout=60)
        try:
            sent = {"Host": f"127.0.0.1:{self.access.port}", **(headers or {})}
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if body is not None and "Transfer-Encoding" not in sent:
                sent.setdefault("Content-Length", str(len(body)))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        sent = {"Content-Type": "application/json", **headers}
        return self.ask("POST", path, json.dumps(body).encode(), sent)


def running(
    data: Path, token: str | None = None, players: Players | None = None
) -> Iterator[Client]:
    """A server in a thread, until the generator is closed."""
    listening, access = listen("127.0.0.1", 0)
    access = Access(access.host, access.port, token)
    players = players or Players(data, device="cpu")
    server = server_of(create_app(data, access, players=players))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield Client(access)
    server.should_exit = True
    thread.join(10)
    listening.close()
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def client(data: Path) -> Iterator[Client]:
    yield from running(data)


@pytest.fixture(scope="module")
def guarded(data: Path) -> Iterator[Client]:
    """A server that asks for the token ``secret``."""
    yield from running(data, token="secret")


def silent_about_the_player(store: Store, kind: str) -> None:
    """Land a shard of generation 1 as earlier versions did."""
    [before] = store.artefacts(CONFIG, 1, kind)
    about = {name: value for name, value in before.metadata.items() if "model" not in name}
    with store.create(CONFIG, 1, kind, about) as draft:
        shutil.copyfile(before.file("shard.arrow"), draft / "shard.arrow")
    shutil.rmtree(before.path)


@pytest.fixture()
def damaged(data: Path, tmp_path: Path) -> Iterator[Client]:
    """A copy of the data root in which generation 1 is not what it was: its plan is cut short, so is
    shard 0, which does not say who played it, and there is a shard 2 whose manifest is.
    """
    root = tmp_path / "data"
    shutil.copytree(data, root)
    shard = Store(root).require(CONFIG, 1, shard_kind(1))
    kind = shard.path.parent
    shutil.copytree(kind, kind.with_name(shard_kind(2)))
    silent_about_the_player(Store(root), shard_kind(0))
    for path in (
        kind.parent / "plan.json",
        Store(root).require(CONFIG, 1, shard_kind(0)).file("shard.arrow"),
        kind.with_name(shard_kind(2)) / shard.path.name / MANIFEST,
    ):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    yield from running(root)

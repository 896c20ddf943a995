"""Players that the page asks, loaded once and kept while they are in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ringrift_pipeline.drawing import describe
from ringrift_pipeline.game import CONFIGS, State
from ringrift_pipeline.search import Player, derive_seeds, load_player
from ringrift_pipeline.search.stopping import check_stop
from ringrift_pipeline.search.value_temperature import tempered
from ringrift_pipeline.store import (
    BucketError,
    CorruptArtefactError,
    Store,
    StoreError,
    generation_key,
)
from ringrift_pipeline.store.kinds import EMA_MODEL
from ringrift_pipeline.web.errors import RequestError
from ringrift_pipeline.web.positions import Game, show

KEPT = 5  # players in memory: four seats and one that analyzes
BASELINES = ("random", "heuristic", "rollout")
LISTED = 24  # moves of an analysis
DRAWN = 5  # of them on the board


def is_offered(spec: str) -> bool:
    """Whether any page offers a player, which no folder has to be named for."""
    return spec in (*BASELINES, "champion") or spec.startswith("generation:")


class _Seat:
    """A player that is loaded by the first who needs it, and thinks for one at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.player: Player | None = None


class Players:
    """The players of a data root, at most ``kept`` of them in memory.

    Safe to use from several threads; a player answers one of them at a time. ``folders`` are the
    models' folders that may be named besides champions and generations: those that whoever starts
    the server names, for what is said of any other would tell which folders there are. ``settings``
    are those of networks' search, as ``load_player`` takes them.
    """

    def __init__(
        self,
        data: Path,
        *,
        device: str = "auto",
        folders: tuple[str, ...] = (),
        kept: int = KEPT,
        settings: Any = None,
    ) -> None:
        self.store = Store(data)
        self._device = device
        self.folders = folders
        self._kept = kept
        self._settings = settings
        self._lock = threading.Lock()
        self._seats: OrderedDict[tuple[Any, ...], _Seat] = OrderedDict()

    def known(self, config: str) -> list[str]:
        """Specs of the networks of a config: its champion and generations, newest first."""
        generations = [
            f"generation:{generation_key(generation)}"
            for generation in reversed(self.store.generations(config))
            if self.store.artefacts(config, generation, EMA_MODEL)
        ]
        return [*(["champion"] if self._champion(config) else []), *generations]

    def choose(self, state: State, spec: str, simulations: int, seed: int) -> int:
        """The packed move that a player plays: the same for the same state and seed.

        Raises RequestError for a player that cannot be loaded.
        """
        ply = int(state.to_record()["resume"]["ply"])
        with self._seated(state.config, spec, simulations) as player:
            rows = np.array(state.array, dtype=np.int64)[None]
            return int(player.choose_batch(rows, derive_seeds(seed, ply, 1))[0])

    def analyze(self, game: Game, spec: str, simulations: int) -> dict[str, Any]:
        """What a player thinks of a position.

        ``chances`` are each seat's share of the win at the player's temperature, ``value`` the
        same before calibration; ``moves`` the best ones with ``share`` of the policy and
        ``visits``, and ``position`` has them drawn on the board. Raises RequestError.
        """
        state = game.state
        with self._seated(state.config, spec, simulations) as player:
            found = player.analyze(state)
        order = np.argsort(-found.policy, kind="stable")[:LISTED].tolist()
        best = [(found.moves[i], float(found.policy[i])) for i in order]
        temperature = player.value_temperature
        return {
            "player": spec,
            "chances": found.value.tolist(),
            "value": tempered(found.value, 1.0 / temperature).tolist(),
            "temperature": temperature,
            "calibration": player.calibration,
            "visits": int(found.visits.sum()),
            "moves": [
                {
                    "code": found.moves[i].code,
                    "text": describe(found.moves[i].to_record()),
                    "share": float(found.policy[i]),
                    "visits": int(found.visits[i]),
                }
                for i in order
            ],
            "position": show(state, game.last, [pair for pair in best[:DRAWN] if pair[1] >= 0.01]),
        }

    def load(self, config: str, spec: str, simulations: int) -> None:
        """Load a player now. Raises RequestError if it cannot be."""
        with self._seated(config, spec, simulations):
            pass

    @contextmanager
    def _seated(self, config: str, spec: str, simulations: int) -> Iterator[Player]:
        """The player, for this thread alone.

        Raises SearchStopped where it was given up while another thread had the player.
        """
        if not is_offered(spec) and spec not in self.folders:
            raise RequestError(
                f"{spec!r} is no player that this server offers: a model's folder is, of a server "
                "started by `ringrift play --player FOLDER`",
                "player",
            )
        key = (config, spec, simulations, self._digest(config, spec))
        with self._lock:
            seat = self._seats.setdefault(key, _Seat())
            self._seats.move_to_end(key)
            while len(self._seats) > self._kept:
                self._seats.popitem(last=False)
        with seat.lock:
            check_stop()
            if seat.player is None:
                seat.player = self._load(config, spec, simulations)
            yield seat.player

    def _load(self, config: str, spec: str, simulations: int) -> Player:
        expected: tuple[type[Exception], ...] = (ValueError, LookupError, OSError, ImportError)
        expected += (BucketError, StoreError)
        if spec not in BASELINES:
            from ringrift_pipeline.network import ModelError  # loads torch

            expected += (ModelError,)
        try:
            return load_player(
                spec,
                config,
                simulations=simulations,
                data=self.store.root,
                device=self._device,
                settings=self._settings,
            )
        except expected as error:
            raise RequestError(f"player {spec}: {error}", "player") from error

    def _digest(self, config: str, spec: str) -> str | None:
        """Digest of the model that the champion, or a generation, is now; None of other players."""
        if spec == "champion":
            return self._champion(config)
        number = spec.removeprefix("generation:")
        if number == spec or not number.isdecimal() or config not in CONFIGS:
            return None  # loading it says what is wrong, if anything is
        try:
            model = self.store.current(config, int(number), EMA_MODEL, verify=False)
        except (StoreError, ValueError) as error:
            raise RequestError(f"player {spec}: {error}", "player") from error
        return model.digest if model else None

    def _champion(self, config: str) -> str | None:
        """Digest of the champion of a config, None if there is none that can be read."""
        if config not in CONFIGS:
            return None
        try:
            champion = self.store.champion(config)
        except CorruptArtefactError:
            return None
        return champion.digest if champion else None

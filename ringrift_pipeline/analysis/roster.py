"""The players that queries name, loaded once."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from ringrift_pipeline.analysis.limits import KEPT_PLAYERS
from ringrift_pipeline.analysis.protocol import QueryError
from ringrift_pipeline.search import NetworkPlayer, Player, load_player
from ringrift_pipeline.store import BucketError, Store, StoreError
from ringrift_pipeline.store.kinds import EMA_MODEL

#: Players that need no model, as ``load_player`` names them.
BASELINES = ("random", "heuristic", "rollout")


class Roster:
    """Loads players and keeps the ``KEPT_PLAYERS`` that were asked for last.

    Args:
        default: the player of a query that names none.
        data: the data root with the models.
        device: where networks run.
        seed: root of what random players draw.
        settings: any object with the attributes of ``SearchSettings``, perhaps a ``precision``.
    """

    def __init__(
        self,
        default: str = "champion",
        *,
        data: Path | str | None = None,
        device: str = "auto",
        seed: int = 0,
        settings: Any = None,
    ) -> None:
        self.default = default
        self.data = data
        self.device = device
        self.seed = seed
        self.settings = settings
        self._loaded: OrderedDict[tuple[str, str, int], Player] = OrderedDict()

    def player(self, spec: str, config: str, visits: int) -> Player:
        """The player ``spec`` of ``config``; a rollout player with ``visits`` playouts.

        Raises:
            QueryError: there is no such player, or its files are damaged.
        """
        key = (spec, config, visits if spec == "rollout" else 0)
        player = self._loaded.get(key)
        if player is None:
            try:
                player = load_player(
                    spec,
                    config,
                    simulations=visits,
                    seed=self.seed,
                    data=self.data,
                    device=self.device,
                    settings=self.settings,
                )
            except (
                ValueError,
                LookupError,
                OSError,
                RuntimeError,
                ImportError,
                BucketError,
                StoreError,
            ) as error:
                raise QueryError("player", str(error)) from error
            self._loaded[key] = player
            while len(self._loaded) > KEPT_PLAYERS:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return player

    def clear(self) -> None:
        """Forget all players: what is loaded next is what the data root then has."""
        self._loaded.clear()

    def loaded(self) -> list[dict[str, Any]]:
        """The loaded players, the one asked for last at the end."""
        return [
            {"player": spec, "config": config, **described(player)}
            for (spec, config, _), player in self._loaded.items()
        ]

    def available(self) -> list[dict[str, Any]]:
        """The models of the data root that a query may name, with their configs."""
        if self.data is None or not Path(self.data).is_dir():
            return []
        found: list[dict[str, Any]] = []
        store = Store(self.data)
        for config in store.configs():
            try:
                champion = store.champion(config)
                numbers = [
                    number
                    for number in store.generations(config)
                    if store.current(config, number, EMA_MODEL, verify=False) is not None
                ]
            except StoreError:  # a damaged folder is no reason not to name the others
                continue
            if champion is not None:
                found.append(
                    {"player": "champion", "config": config, "generation": champion.generation}
                )
            found += [
                {"player": f"generation:{number:04d}", "config": config, "generation": number}
                for number in numbers
            ]
        return found


def described(player: Player) -> dict[str, Any]:
    """What there is to know of a player, for ``query_models``."""
    told: dict[str, Any] = {
        "network": isinstance(player, NetworkPlayer),
        "calibration": {
            "temperature": player.value_temperature,
            "source": player.calibration,
        },
    }
    if isinstance(player, NetworkPlayer):
        evaluator: Any = player.evaluator
        told["device"] = str(getattr(evaluator, "device", "cpu"))
        told["precision"] = str(getattr(evaluator, "precision", "float32"))
        told["backend"] = str(getattr(evaluator, "backend", "torch"))
    return told

"""From a player's name to a player."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ringrift_pipeline.game import CONFIGS
from ringrift_pipeline.search.errors import PlayerSpecError
from ringrift_pipeline.search.players import (
    HeuristicPlayer,
    NetworkPlayer,
    Player,
    RandomPlayer,
    RolloutPlayer,
)

#: What ``load_player`` understands, for messages and help texts.
VALID_SPECS = (
    "random",
    "heuristic",
    "rollout",
    "champion",
    "generation:NNNN (e.g. generation:0007)",
    "the path of a model folder (one that holds model.safetensors and model.json)",
)
_GENERATION = re.compile(r"generation:(\d+)")
_MODEL_KIND = "ema_model"


def load_player(
    spec: str | os.PathLike[str],
    config: str,
    *,
    simulations: int = 64,
    seed: int = 0,
    data: str | os.PathLike[str] | None = None,
    device: str = "auto",
    settings: Any = None,
) -> Player:
    """The player that ``spec`` names, for games of ``config``.

    ``spec`` is ``random``, ``heuristic``, ``rollout``, ``champion``, ``generation:0007`` or the
    path of a model folder. ``simulations`` are those of the network's search, or the playouts of
    ``rollout``. ``seed`` begins the player's own random stream. ``data`` is the data root that
    ``champion`` and ``generation:`` read (default: ``RINGRIFT_DATA``, else ``data`` in the
    current folder); ``device`` is where a network runs. ``settings`` may be any object with the
    attributes of :class:`~ringrift_pipeline.search.SearchSettings`.

    Raises :class:`PlayerSpecError` for a spec that names no player or a model that cannot play
    this config, ``ValueError`` for an unknown config or device and for simulations out of range,
    :class:`~ringrift_pipeline.store.MissingArtefactError` when there is no such champion or
    generation, and the store's and the network's errors for corrupt files.
    """
    if config not in CONFIGS:
        raise ValueError(f"unknown config {config!r}; valid are {', '.join(CONFIGS)}")
    text = os.fspath(spec)
    if text == "random":
        return RandomPlayer(config, seed)
    if text == "heuristic":
        return HeuristicPlayer(config, seed)
    if text == "rollout":
        return RolloutPlayer(config, seed, playouts=simulations)
    folder = _model_folder(text, config, data)

    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import Evaluator, load_model

    rules = get_rules(config)
    model = load_model(folder, device)
    if model.config.geometry != rules.geometry:
        raise PlayerSpecError(
            f"{text!r} is a network for {model.config.geometry} boards and cannot play {config} "
            f"({rules.geometry})"
        )
    evaluator = Evaluator(model, rules, device)
    return NetworkPlayer(
        config, evaluator, simulations=simulations, seed=seed, settings=settings, name=text
    )


def _model_folder(text: str, config: str, data: str | os.PathLike[str] | None) -> Path:
    """The verified model folder that a spec other than a baseline's names."""
    from ringrift_pipeline.store import MissingArtefactError, Store

    if text == "champion" or text.startswith("generation:"):
        store = Store(data if data is not None else os.environ.get("RINGRIFT_DATA") or "data")
        if text == "champion":
            champion = store.champion(config)
            if champion is None:
                raise MissingArtefactError(
                    f"a champion of {config} in {store.root}",
                    f"`ringrift loop --config {config}` makes one, or choose another player",
                )
            return store.open(champion.path).path
        match = _GENERATION.fullmatch(text)
        if match is None:
            raise _unknown(text, "the generation must be a number")
        return store.require(config, int(match[1]), _MODEL_KIND).path
    path = Path(text).expanduser()
    if path.is_file() and path.name in ("model.safetensors", "model.json"):
        path = path.parent
    if not path.exists():
        raise _unknown(text, "it is no player's name and no such path exists")
    if not (path / "model.json").is_file():
        raise _unknown(text, f"{path} holds no model.json")
    return path


def _unknown(text: str, why: str) -> PlayerSpecError:
    valid = "; ".join(VALID_SPECS)
    return PlayerSpecError(f"cannot load the player {text!r}: {why}. Valid are: {valid}")

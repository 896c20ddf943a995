"""From a player's name to a player."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.game import CONFIGS
from ringrift_pipeline.search.errors import PlayerSpecError
from ringrift_pipeline.search.players import (
    HeuristicPlayer,
    NetworkPlayer,
    Player,
    RandomPlayer,
    RolloutPlayer,
)
from ringrift_pipeline.search.value_temperature import (
    ValueTemperature,
    store_of,
    value_temperature,
)
from ringrift_pipeline.store.kinds import EMA_MODEL
from ringrift_pipeline.store.layout import MANIFEST

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store

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


def load_player(
    spec: str | os.PathLike[str],
    config: str,
    *,
    simulations: int = 64,
    seed: int = 0,
    data: str | os.PathLike[str] | None = None,
    device: str = "auto",
    settings: Any = None,
    symmetries: int = 1,
) -> Player:
    """The player that ``spec`` names, for games of ``config``.

    ``spec`` is ``random``, ``heuristic``, ``rollout``, ``champion``, ``generation:0007`` or the
    path of a model folder. ``simulations`` are those of the network's search, or the playouts of
    ``rollout``. ``seed`` begins the player's own random stream. ``data`` is the data root that
    ``champion`` and ``generation:`` read (default: ``RINGRIFT_DATA``, else ``data`` in the
    current folder); ``device`` is where a network runs. ``settings`` may be any object with the
    attributes of :class:`~ringrift_pipeline.search.SearchSettings`; its ``precision``, if it has
    one, is the network's arithmetic (else ``auto``: bfloat16 where ``device`` has it and the model
    was not found to lose by it), its ``backend`` what runs it (else ``auto``: OpenVINO on the CPU where it is installed). A network's
    evaluations are averaged over ``symmetries`` of the board, at most all it has, which costs as
    many evaluations.

    A network's ``value_temperature`` is that of the calibration report of this very model, where
    its data root holds one (for a path: the root that the folder lies in, else ``data``); it
    tempers the chances of an analysis and nothing else. Without a report that can be used it is
    1, and the player's ``calibration`` says why (see :mod:`~.value_temperature`).

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
    folder, calibration, about = model_folder(text, config, data)

    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import (
        Evaluator,
        SymmetricEvaluator,
        backend_on,
        load_model,
        resolve_precision,
    )

    rules = get_rules(config)
    model = load_model(folder, device)
    if model.config.geometry != rules.geometry:
        raise PlayerSpecError(
            f"{text!r} is a network for {model.config.geometry} boards and cannot play {config} "
            f"({rules.geometry})"
        )
    precision = resolve_precision(getattr(settings, "precision", "auto"), device, [about])
    backend = backend_on(device, getattr(settings, "backend", "auto"))
    name = f"{text} ({folder})"
    evaluator = Evaluator(model, rules, device, precision=precision, backend=backend, name=name)
    return NetworkPlayer(
        config,
        SymmetricEvaluator(evaluator, symmetries) if symmetries > 1 else evaluator,
        simulations=simulations,
        seed=seed,
        settings=settings,
        name=text,
        value_temperature=calibration.temperature,
        calibration=calibration.reason,
    )


def model_folder(
    text: str, config: str, data: str | os.PathLike[str] | None
) -> tuple[Path, ValueTemperature, dict[str, Any]]:
    """The verified model folder that a spec other than a baseline's names, its temperature, and the
    metadata of its artefact, of which a folder outside a store has none.
    """
    from ringrift_pipeline.store import MissingArtefactError, Store

    root = data if data is not None else os.environ.get("RINGRIFT_DATA") or "data"
    if text == "champion" or text.startswith("generation:"):
        store = Store(root)
        if text == "champion":
            champion = store.champion(config)
            if champion is None:
                raise MissingArtefactError(
                    f"a champion of {config} in {store.root}",
                    f"`ringrift loop --config {config}` makes one, or choose another player",
                )
            return _calibrated(store, store.open(champion.path), config)
        match = _GENERATION.fullmatch(text)
        if match is None:
            raise _unknown(text, "the generation must be a number")
        return _calibrated(store, store.require(config, int(match[1]), EMA_MODEL), config)
    path = Path(os.path.expanduser(text))  # unlike Path's own, leaves alone who is not known here
    if path.is_file() and path.name in ("model.safetensors", "model.json"):
        path = path.parent
    if not path.exists() and not _fetched(path, root):
        raise _unknown(text, "it is no player's name and no such path exists")
    if not (path / "model.json").is_file():
        raise _unknown(text, f"{path} holds no model.json")
    if not (path / MANIFEST).is_file():
        return path, ValueTemperature(1.0, f"{path} is no artefact of a store"), {}
    store = store_of(path, root)
    return _calibrated(store, store.open(path), config)


def _fetched(path: Path, root: str | os.PathLike[str]) -> bool:
    """Whether a folder that is not here was in the bucket behind the data root, and is here now."""
    from ringrift_pipeline.store import MissingArtefactError, Store

    store = Store(root)
    if store.remote is None:
        return False
    try:
        return store.open(path).path.exists()
    except MissingArtefactError:
        return False


def _calibrated(
    store: Store, model: Artefact, config: str
) -> tuple[Path, ValueTemperature, dict[str, Any]]:
    return model.path, value_temperature(store, model, config), dict(model.metadata)


def _unknown(text: str, why: str) -> PlayerSpecError:
    valid = "; ".join(VALID_SPECS)
    return PlayerSpecError(f"cannot load the player {text!r}: {why}. Valid are: {valid}")

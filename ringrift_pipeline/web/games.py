"""Recorded games: which there are, and what their shards say of every ply."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ringrift_pipeline.drawing import describe
from ringrift_pipeline.game import CONFIGS, IllegalMoveError, layout, new_game
from ringrift_pipeline.selfplay.shards import (
    SHARD_FILE,
    ShardError,
    column,
    game_id,
    ragged_column,
    read_metadata,
    read_shard,
    shard_kind,
)
from ringrift_pipeline.selfplay.soundness import first_fault
from ringrift_pipeline.store import Artefact, Store, StoreError
from ringrift_pipeline.web.errors import RequestError
from ringrift_pipeline.web.players import DRAWN, LISTED
from ringrift_pipeline.web.positions import Game, show

KEPT = 4  # shards and games in memory
_DAMAGED = (ShardError, StoreError, pa.ArrowException, OSError)  # what reading a shard may raise
_NUMBER = re.compile(r"[0-9]{4,9}")
_SHARD = re.compile(re.escape(shard_kind(0)[:-4]) + "([0-9]{4,9})")
_COLUMNS = (
    "game_id", "game", "ply", "moves", "policy", "full_search", "selected", "outcome",
    "root_value", "search_value", "surprise", "game_plies", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class _Shard:
    """A shard's rows, game by game, and where they come from."""

    about: dict[str, Any]
    table: pa.Table
    starts: dict[int, tuple[int, int]]  # of each game: its first row and the one after its last

    def rows(self, game: int) -> pa.Table:
        first, end = self.starts[game]
        return self.table.slice(first, end - first)


@dataclass(frozen=True)
class _Recorded:
    """A recorded game played again: ``row_of`` has the row of each ply that was a decision."""

    game: Game
    rows: pa.Table
    row_of: dict[int, int]
    summary: dict[str, Any]


class RecordedGames:
    """Every game in the shards of a data root, for reading only.

    Names come from addresses: a config, a generation (``0003``), a shard (``0000``), a game
    (``0012``). One that names nothing raises RequestError with status 404, and only numbers that
    the store lists ever become a path.
    """

    def __init__(self, data: Path) -> None:
        self.store = Store(data)
        self._shard = functools.lru_cache(KEPT)(self._read_shard)
        self._game = functools.lru_cache(KEPT)(self._replay)

    def configs(self) -> list[dict[str, Any]]:
        """Configs with shards: ``config`` and how many ``generations`` have some."""
        found = []
        for config in self.store.configs():
            if config in CONFIGS and (count := len(self._generations(config))):
                found.append({"config": config, "generations": count})
        return found

    def generations(self, config: str) -> list[dict[str, Any]]:
        """A config's generations with shards, newest first: who played, and how many shards. Where
        that cannot be read, ``player`` is None and ``error`` says why.
        """
        self._check_config(config)
        found = []
        for generation in reversed(self.store.generations(config)):
            shards = self._shards(config, generation)
            if not shards:
                continue
            item: dict[str, Any] = {"generation": f"{generation:04d}", "player": None}
            item["shards"] = len(shards)
            try:
                item["player"] = self._player(config, generation, shards[0])
            except StoreError as error:
                item["error"] = str(error)
            found.append(item)
        return found

    def shards(self, config: str, generation: str) -> list[dict[str, Any]]:
        """A generation's shards: number, ``games`` and ``positions``. Of one that cannot be read
        these are None and ``error`` says why.
        """
        number = self._find_generation(config, generation)
        found = []
        for shard in self._shards(config, number):
            item: dict[str, Any] = {"shard": f"{shard:04d}", "games": None, "positions": None}
            try:
                item |= self._counts(config, number, shard)
            except (RequestError, *_DAMAGED) as error:
                item["error"] = str(error)
            found.append(item)
        return found

    def games(self, config: str, generation: str, shard: str) -> list[dict[str, Any]]:
        """A shard's games: number, ``plies``, ``decisions``, ``reason``, ``winners`` (seats; none
        where the game was cut short), ``surprise`` (nats, in the mean; None of the heuristic's
        games).
        """
        found = self._find_shard(config, generation, shard)
        return [self._summary(found, game) for game in found.starts]

    def game(self, config: str, generation: str, shard: str, game: str) -> dict[str, Any]:
        """One game: its summary, packed ``moves`` and, for every ply, its ``timeline`` entry.

        An entry has the ``ply``, ``surprise`` (nats; None of the heuristic's) and ``value`` (each
        seat's share of the win after the search) of a decision.
        """
        found = self._find_game(config, generation, shard, game)
        surprise = _surprise(found.rows, found.summary["player"])
        value = column(found.rows, "search_value")
        return {
            **found.summary,
            "plies": len(found.game.plies),
            "moves": [played.code for played in found.game.plies],
            "timeline": [
                {"ply": ply, "surprise": surprise[row], "value": value[row].tolist()}
                for ply, row in found.row_of.items()
            ],
        }

    def ply(self, ply: int, config: str, generation: str, shard: str, game: str) -> dict[str, Any]:
        """The position before a ply, the move played there and, for a decision, what its search
        said; after the last ply the end. Raises RequestError with status 404 beyond it.
        """
        found = self._find_game(config, generation, shard, game)
        plies = found.game.plies
        if not 0 <= ply <= len(plies):
            raise RequestError(f"ply {ply}: the game has plies 0 to {len(plies)}", "ply", 404)
        state = plies[ply].before if ply < len(plies) else found.game.state
        before = Game(state)
        before.plies = plies[:ply]
        row = found.row_of.get(ply)
        policy = [] if row is None else _policy(found.rows, row)
        moves = state.legal_moves() if policy else []
        drawn = [(moves[i], share) for i, share in policy[:DRAWN] if share >= 0.01]
        answer: dict[str, Any] = {
            "ply": ply,
            "position": show(state, before.last, drawn),
            "played": plies[ply].to_dict() if ply < len(plies) else None,
            "decision": None,
        }
        if row is not None:
            named = (
                column(found.rows, "opponent") if "opponent" in found.rows.column_names else None
            )
            answer["decision"] = {
                "full_search": bool(column(found.rows, "full_search")[row]),
                "surprise": _surprise(found.rows, found.summary["player"])[row],
                "root_value": column(found.rows, "root_value")[row].tolist(),
                "search_value": column(found.rows, "search_value")[row].tolist(),
                "opponent": bool(named[row]) if named is not None else False,
                "legal": len(moves),
                "moves": [
                    {
                        "code": moves[i].code,
                        "text": describe(moves[i].to_record()),
                        "share": share,
                        "played": moves[i].code == plies[ply].code,
                    }
                    for i, share in policy[:LISTED]
                ],
            }
        return answer

    # --- finding ----------------------------------------------------------------------------------

    def _generations(self, config: str) -> list[int]:
        return [g for g in self.store.generations(config) if self._shards(config, g)]

    def _shards(self, config: str, generation: int) -> list[int]:
        kinds = map(_SHARD.fullmatch, self.store.kinds(config, generation))
        return sorted(int(kind[1]) for kind in kinds if kind)

    def _check_config(self, config: str) -> None:
        if config not in CONFIGS or config not in self.store.configs():
            raise RequestError(f"there are no games of {config!r}", "config", 404)

    def _find_generation(self, config: str, generation: str) -> int:
        self._check_config(config)
        if _NUMBER.fullmatch(generation) and self._shards(config, int(generation)):
            return int(generation)
        raise RequestError(f"{config} has no generation {generation!r}", "generation", 404)

    def _find_shard(self, config: str, generation: str, shard: str) -> _Shard:
        number = self._find_generation(config, generation)
        if not _NUMBER.fullmatch(shard) or int(shard) not in self._shards(config, number):
            raise RequestError(f"generation {generation} has no shard {shard!r}", "shard", 404)
        return self._shard(self._artefact(config, number, int(shard)).file(SHARD_FILE))

    def _find_game(self, config: str, generation: str, shard: str, game: str) -> _Recorded:
        found = self._find_shard(config, generation, shard)
        if not _NUMBER.fullmatch(game) or int(game) not in found.starts:
            raise RequestError(f"shard {shard} has no game {game!r}", "game", 404)
        number = int(generation)
        return self._game(self._artefact(config, number, int(shard)).file(SHARD_FILE), int(game))

    def _artefact(self, config: str, generation: int, shard: int) -> Artefact:
        landed = self.store.artefacts(config, generation, shard_kind(shard))
        if not landed:
            raise RequestError(f"shard {shard:04d} has no artefact that verifies", "shard", 404)
        return landed[-1]

    # --- reading ----------------------------------------------------------------------------------

    def _player(self, config: str, generation: int, shard: int) -> str:
        """Who played a generation, by a shard's manifest; where that does not say it, as those of
        earlier versions do not, by the plan, which is as long as its window.
        """
        for artefact in self.store.artefacts(config, generation, shard_kind(shard)):
            if "model_generation" in artefact.metadata:
                number = artefact.metadata["model_generation"]
                break
        else:
            champion = self.store.read_plan(config, generation).get("champion")
            number = champion["generation"] if champion else None
        return "the heuristic" if number is None else f"generation {number:04d}"

    def _counts(self, config: str, generation: int, shard: int) -> dict[str, int]:
        """Games and positions of a shard: of its file, or as its artefact says where that is in a
        bucket, and fetched when it is looked at.
        """
        artefact = self._artefact(config, generation, shard)
        if not artefact.path.is_dir():
            return {name: artefact.metadata[name] for name in ("games", "positions")}
        about = read_metadata(artefact.file(SHARD_FILE))
        return {"games": about["games"], "positions": about["counts"]["rows"]}

    def _read_shard(self, path: Path) -> _Shard:
        try:
            about = read_metadata(path)
            names = _COLUMNS + (("opponent",) if about["format"] >= 2 else ())
            table = read_shard(path, names)
            if fault := first_fault(table):
                raise ShardError(f"{path}: {fault}")
        except _DAMAGED as error:
            raise RequestError(str(error), "shard", 409) from error
        games = column(table, "game")
        first = np.flatnonzero(np.diff(games, prepend=-1))
        ends = [*first[1:].tolist(), len(games)]
        starts = {int(games[a]): (a, b) for a, b in zip(first.tolist(), ends, strict=True)}
        return _Shard(about, table, starts)

    def _summary(self, shard: _Shard, game: int) -> dict[str, Any]:
        rows = shard.rows(game)
        outcome = column(rows, "outcome")[0]
        reason = int(column(rows, "reason")[0])
        about = shard.about
        surprise = _surprise(rows, about["player"])
        return {
            "id": game_id(about["config"], about["generation"], about["shard"], game),
            "config": about["config"],
            "game": f"{game:04d}",
            "plies": int(column(rows, "game_plies")[0]),
            "decisions": len(rows),
            "winners": _winners(outcome) if reason >= 0 else [],
            "reason": layout.REASON_NAMES[reason] if reason >= 0 else "cut short",
            "surprise": float(np.mean(surprise)) if surprise[0] is not None else None,
            "player": about["player"],
            "model_generation": about.get("model_generation"),
        }

    def _replay(self, path: Path, number: int) -> _Recorded:
        """Play a recorded game again, as far as it went; what is not recorded was forced."""
        shard = self._shard(path)
        rows = shard.rows(number)
        plies, selected = column(rows, "ply"), column(rows, "selected")
        length = int(column(rows, "game_plies")[0])
        game = Game(new_game(shard.about["config"]))
        counts, moves = ragged_column(rows, "moves")
        legal = np.split(moves, np.cumsum(counts)[:-1])
        row_of = {}
        try:
            for row, (ply, code) in enumerate(zip(plies.tolist(), selected.tolist(), strict=True)):
                game.play_forced(length)
                if len(game.plies) != ply or game.state.legal_codes() != legal[row].tolist():
                    raise ValueError(f"decision {row}, at ply {ply}, is not the one recorded")
                row_of[ply] = row
                game.play(code)
            game.play_forced(length)
        except (IllegalMoveError, ValueError) as error:
            raise RequestError(
                f"{path}: game {number} is not one that these rules play ({error}); it was "
                f"recorded by engine version {shard.about.get('engine_version')}",
                "game",
                409,
            ) from None
        return _Recorded(game, rows, row_of, self._summary(shard, number))


def _surprise(rows: pa.Table, player: str) -> list[Any]:
    """Of every row, nats; None where the heuristic played, which has no prior."""
    if player == "heuristic":
        return [None] * len(rows)
    return column(rows, "surprise").tolist()


def _policy(rows: pa.Table, row: int) -> list[tuple[int, float]]:
    """Indices of a row's legal moves and their share of its search policy, best first."""
    _, policy = ragged_column(rows.slice(row, 1), "policy")
    order: NDArray[np.int64] = np.argsort(-policy, kind="stable")
    return [(int(i), float(policy[i])) for i in order]


def _winners(outcome: NDArray[np.float32]) -> list[int]:
    """The seats (from 1) with the largest share of the win."""
    return [int(seat) + 1 for seat in np.flatnonzero(outcome == outcome.max())]

"""From findings to the JSON of an answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringrift_pipeline.analysis.jobs import Findings, Job, Line
from ringrift_pipeline.game import Rules, State, get_rules, kernels, layout
from ringrift_pipeline.game.records import move_to_record
from ringrift_pipeline.search.noise import hash_row

Record = dict[str, Any]

#: Decimal places of chances and shares.
PLACES = 6
#: Words of a position that are its age and nothing else.
_AGE = (layout.PLY, layout.TURN)


def error_answer(
    id: str | None, message: str, field: str | None = None, turn: int | None = None
) -> Record:
    """What is said of a query, or of one turn of it, that cannot be answered."""
    told: Record = {} if id is None else {"id": id}
    if turn is not None:
        told["turnNumber"] = turn
    told["error"] = message
    if field is not None:
        told["field"] = field
    return told


def warning_answer(id: str, field: str, message: str) -> Record:
    """What is said of a part of a query that was not used."""
    return {"id": id, "warning": message, "field": field}


def given_up(job: Job) -> Record:
    """The answer of a turn that was terminated."""
    return {"id": job.id, "turnNumber": job.turn, "isDuringSearch": False, "noResults": True}


def answer(job: Job, found: Findings) -> Record:
    """The answer of a turn that was analysed."""
    rules = get_rules(job.config)
    mover = int(job.row[layout.PLAYER])
    told: Record = {
        "id": job.id,
        "turnNumber": job.turn,
        "isDuringSearch": False,
        "moveInfos": [
            _move_info(rules, job.row, found, order, line, mover)
            for order, line in enumerate(found.lines[: job.max_moves])
        ],
        "rootInfo": {
            "currentPlayer": mover + 1,
            "phase": layout.PHASE_NAMES[int(job.row[layout.PHASE])],
            "visits": found.root_visits,
            "winrate": _of_seat(found.value, mover),
            "winrates": _rounded(found.value),
            "rawWinrates": _rounded(found.raw),
            "policyEntropy": round(entropy(found.policy), PLACES),
            "thisHash": position_hash(job.row),
            "calibration": {
                "temperature": job.player.value_temperature,
                "source": job.player.calibration,
            },
        },
    }
    if job.include_policy:
        told["policy"] = [
            {
                "move": move_to_record(rules, job.row, move),
                "prior": _share(found.prior, action),
                "policy": _share(found.policy, action),
            }
            for action, move in enumerate(found.moves.tolist())
        ]
    return told


def ended_answer(
    id: str, turn: int, config: str, row: np.ndarray, include_policy: bool = False
) -> Record:
    """The answer of a turn in which the game is over, position ``row`` (S,) int64: its result."""
    rules = get_rules(config)
    state = State.from_array(config, row)
    points = np.zeros(rules.players, dtype=np.float64)
    kernels.ranking_points(rules.constants, np.array(row), points)
    told: Record = {
        "id": id,
        "turnNumber": turn,
        "isDuringSearch": False,
        "moveInfos": [],
        "rootInfo": {
            "currentPlayer": None,
            "phase": state.phase,
            "visits": 0,
            "winner": state.winner,
            "ranking": state.ranking(),
            "reason": state.reason,
            "winrate": None,
            "winrates": _rounded(points),
            "rawWinrates": None,
            "policyEntropy": None,
            "thisHash": position_hash(row),
            "calibration": None,
        },
    }
    if include_policy:
        told["policy"] = []
    return told


def _move_info(
    rules: Rules, row: np.ndarray, found: Findings, order: int, line: Line, mover: int
) -> Record:
    variation = spelled(rules, row, line)
    return {
        "move": variation[0],
        "order": order,
        "visits": int(found.visits[line.action]),
        "prior": _share(found.prior, line.action),
        "policy": _share(found.policy, line.action),
        "winrate": _of_seat(line.value, mover),
        "winrates": _rounded(line.value),
        "pv": variation,
    }


def spelled(rules: Rules, row: np.ndarray, line: Line) -> list[Record]:
    """Every move of a line from the position ``row`` (S,), the forced ones among them."""
    if not line.follow:
        return [move_to_record(rules, row, line.decisions[0])]
    position = row.copy()
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    told = []
    for decision in line.decisions:
        move = decision
        while True:
            told.append(move_to_record(rules, position, move))
            kernels.apply_move(rules.constants, position, move)
            if kernels.legal_moves(rules.constants, position, buffer) != 1:
                break
            move = int(buffer[0])
    return told


def entropy(shares: np.ndarray) -> float:
    """Entropy of ``shares`` (n,), which sum to 1, in nats."""
    some = shares[shares > 0]
    return float(max(0.0, -(some * np.log(some)).sum()))


def position_hash(row: np.ndarray) -> str:
    """16 hex digits, the same for positions ``row`` (S,) int64 that differ in age only."""
    ageless = row.copy()
    ageless[list(_AGE)] = 0
    return f"{int(hash_row(ageless, np.uint64(0))):016x}"


def _share(shares: np.ndarray | None, action: int) -> float | None:
    return None if shares is None else round(float(shares[action]), PLACES)


def _of_seat(chances: np.ndarray | None, seat: int) -> float | None:
    return None if chances is None else round(float(chances[seat]), PLACES)


def _rounded(chances: np.ndarray | None) -> list[float] | None:
    return None if chances is None else [round(x, PLACES) for x in chances.tolist()]

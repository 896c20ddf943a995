"""RingRift's rules for all twelve configs.

:func:`new_game` gives the object API; :mod:`ringrift_pipeline.game.kernels` the rules on arrays.
The rules follow ``RULES_CANONICAL_SPEC.md`` of the RingRift project, whose ids (RR-CANON-Rnnn, or
Rnnn for short) are cited where they are implemented.
"""

from __future__ import annotations

from ringrift_pipeline.game.board import BOARDS, CONFIGS, Rules, get_rules, parse_config
from ringrift_pipeline.game.errors import IllegalMoveError, RecordError
from ringrift_pipeline.game.replay import ReplayReport, read_traces, replay_file, replay_trace
from ringrift_pipeline.game.state import Move, State, new_game

#: Bumped when the rules behave differently; recorded in every shard.
ENGINE_VERSION = "1"

__all__ = [
    "BOARDS",
    "CONFIGS",
    "ENGINE_VERSION",
    "IllegalMoveError",
    "Move",
    "RecordError",
    "ReplayReport",
    "Rules",
    "State",
    "get_rules",
    "new_game",
    "parse_config",
    "read_traces",
    "replay_file",
    "replay_trace",
]

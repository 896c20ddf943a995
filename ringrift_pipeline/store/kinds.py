"""Artefacts that are read by a room before the one that makes them: their kinds and files; and the
versions of the code that makes them.

A room imports only from the rooms before it, yet the loop is a circle: players report by the
calibration of their model, and selfplay meets the members of the last ensemble. What both ends
must agree on are these names.
"""

from __future__ import annotations

EMA_MODEL = "ema_model"

ENSEMBLE = "ensemble"
ENSEMBLE_MEMBERS = "members.json"

CALIBRATION = "calibration_report"
CALIBRATION_FILE = "report.json"
CALIBRATION_FORMAT = 1
"""Format of the report; a reader that meets a higher one does not know what it says."""

EVALUATION = "evaluation"
EVALUATION_FILE = "report.json"
RATING = "eval/elo"
RATING_OVER_RANDOM = "eval/elo_over_random"
"""What an evaluation's metadata call the candidate's rating, with ``_low`` and ``_high``: by the
heuristic's 1200, or, where the heuristic does not play, by random play's 0.
"""

GAUNTLET = "gauntlet"
RATING_LIST = "rating_list"

SHARD_PREFIX = "selfplay-shard-"
WINDOW = "window"
CHECKPOINT = "checkpoint"
TRAINING_STATE = "training_state"
PART_PREFIXES = ("evaluation-part-", "ablation-run-")
"""Finished parts of a work that was interrupted; removed when the whole has landed."""

LOCAL_KINDS = frozenset({WINDOW})
"""Never sent to a bucket: a window is several times the size of the shards it is made of, and whoever
has these makes it again, the same bytes; what it was made from is named by content hash.
"""

CODE_VERSIONS = {
    "selfplay_shards": "2",  # and of each shard
    "quality_scores": "1",
    "hard_examples": "1",
    CHECKPOINT: "3",
    EMA_MODEL: "1",
    ENSEMBLE: "1",
    CALIBRATION: "1",
    EVALUATION: "1",
    "retention": "1",
}
"""By asset the version of the code that makes it. Raise one where the same inputs come to another
result: what was made before is then out of date, and made anew when it is asked for.
"""


def made_by(kind: str) -> dict[str, str]:
    """What an artefact of this kind says of the code that made it: nothing of version 1, nor where
    the kind has no version.
    """
    version = CODE_VERSIONS.get(kind, "1")
    return {} if version == "1" else {"code_version": version}


def shard_kind(index: int) -> str:
    """Artefact kind of a shard: ``selfplay-shard-0003``."""
    return f"{SHARD_PREFIX}{index:04d}"

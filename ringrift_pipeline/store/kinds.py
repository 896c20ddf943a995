"""Artefacts that are read by a room before the one that makes them: their kinds and files.

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

GAUNTLET = "gauntlet"

SHARD_PREFIX = "selfplay-shard-"
WINDOW = "window"
CHECKPOINT = "checkpoint"
TRAINING_STATE = "training_state"
PART_PREFIXES = ("evaluation-part-", "ablation-run-")
"""Finished parts of a work that was interrupted; removed when the whole has landed."""


def shard_kind(index: int) -> str:
    """Artefact kind of a shard: ``selfplay-shard-0003``."""
    return f"{SHARD_PREFIX}{index:04d}"

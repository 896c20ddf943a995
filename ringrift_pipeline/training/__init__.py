"""From shards to a candidate: scores, hard examples, training, averaging, calibration.

Every step is a function of the store and a generation's plan that returns its artefact; called
again with the same inputs it returns the one that is there. Names load on first use: importing
this room costs neither torch nor polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.training.averaging import average
    from ringrift_pipeline.training.calibrating import calibrate
    from ringrift_pipeline.training.consolidation import FinetuneError, measure_fisher
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.ensembling import build_ensemble
    from ringrift_pipeline.training.hard_examples import mine_hard_examples
    from ringrift_pipeline.training.loop import ResumeError, train
    from ringrift_pipeline.training.processes import ProcessesError
    from ringrift_pipeline.training.quality import score_games
    from ringrift_pipeline.training.row_checks import BadRowsError
    from ringrift_pipeline.training.staleness import (
        Freshness,
        StaleWindowError,
        judge_window,
        require_fresh,
    )
    from ringrift_pipeline.training.tables import (
        CALIBRATION_BINS,
        HARD_EXAMPLES,
        QUALITY_SCORES,
        Column,
        TableError,
        read_table,
    )
    from ringrift_pipeline.training.together import torchrun_rank
    from ringrift_pipeline.training.window import Window, WindowError, build_window, open_window

_MODULES = {
    "averaging": ("average",),
    "calibrating": ("calibrate",),
    "consolidation": ("FinetuneError", "measure_fisher"),
    "dataset": ("WindowDataset",),
    "ensembling": ("build_ensemble",),
    "hard_examples": ("mine_hard_examples",),
    "loop": ("ResumeError", "train"),
    "processes": ("ProcessesError",),
    "together": ("torchrun_rank",),
    "quality": ("score_games",),
    "row_checks": ("BadRowsError",),
    "staleness": ("Freshness", "StaleWindowError", "judge_window", "require_fresh"),
    "tables": (
        "CALIBRATION_BINS",
        "HARD_EXAMPLES",
        "QUALITY_SCORES",
        "Column",
        "TableError",
        "read_table",
    ),
    "window": ("Window", "WindowError", "build_window", "open_window"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CALIBRATION_BINS",
    "HARD_EXAMPLES",
    "QUALITY_SCORES",
    "BadRowsError",
    "Column",
    "FinetuneError",
    "Freshness",
    "ProcessesError",
    "ResumeError",
    "StaleWindowError",
    "TableError",
    "Window",
    "WindowDataset",
    "WindowError",
    "average",
    "build_ensemble",
    "build_window",
    "calibrate",
    "judge_window",
    "measure_fisher",
    "mine_hard_examples",
    "open_window",
    "read_table",
    "require_fresh",
    "score_games",
    "torchrun_rank",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

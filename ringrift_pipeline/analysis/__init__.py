"""Analysis of positions for other front ends: JSON lines in, JSON lines out.

Names load on first use: importing this room costs neither numba nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.analysis.engine import Engine
    from ringrift_pipeline.analysis.roster import Roster
    from ringrift_pipeline.analysis.serving import Ending, claimed_stdout, serve

_HOME = {
    "Ending": "serving",
    "Engine": "engine",
    "Roster": "roster",
    "claimed_stdout": "serving",
    "serve": "serving",
}

__all__ = ["Ending", "Engine", "Roster", "claimed_stdout", "serve"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

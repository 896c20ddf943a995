"""numba, with the settings of the environment (``NUMBA_*``) and of no file."""

from __future__ import annotations

import os
from typing import Any

from ringrift_pipeline.libraries.current_folder import unread

__all__ = ["numba"]

_FILE = ".numba_config.yaml"

with unread(_FILE, "numba", "variables NUMBA_*"):
    import numba
    import numba.core.cgutils
    import numba.core.config
    import numba.extending


def _reload_unless_there() -> None:
    """numba looks again before it compiles: whatever may be the current folder by then."""
    if not os.path.exists(_FILE):
        _reload()


_config: Any = numba.core.config
_reload = _config.reload_config
_config.reload_config = _reload_unless_there

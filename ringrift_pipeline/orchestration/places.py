"""Where an instance lives: the data root, the Dagster folder in it, the progress files.

Standard library only, so that the command line may ask before it imports Dagster.
"""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "RINGRIFT_DATA"
HOME_VARIABLE = "DAGSTER_HOME"
DEFAULT_DATA = "data"


def home_folder(data: Path) -> Path:
    """``<data>/dagster``: run history, event log, logs of steps, progress files."""
    return data / "dagster"


def data_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The data root, absolute: what is given, else ``RINGRIFT_DATA``, else that of the Dagster
    home if it is one of ours (``<data>/dagster``), else ``data`` in the current folder.
    """
    if given:
        return Path(given).expanduser().resolve()
    if os.environ.get(DATA_VARIABLE):
        return Path(os.environ[DATA_VARIABLE]).expanduser().resolve()
    home = os.environ.get(HOME_VARIABLE)
    if home and Path(home).name == "dagster":
        return Path(home).expanduser().resolve().parent
    return Path(DEFAULT_DATA).resolve()


def services_folder(data: Path) -> Path:
    """Logs of the daemon, the code server and the web server, and which of them are up."""
    return home_folder(data) / "services"


def progress_folder(data: Path, run_id: str | None = None) -> Path:
    """Folder of the progress files, of one run if its id is given."""
    root = home_folder(data) / "progress"
    return root / run_id if run_id else root


PLAY_PORT = 3001  # of the page of `ringrift play`, beside the Dagster UI's 3000


def game_address(game: str) -> str:
    """Where the page of ``ringrift play`` shows a recorded game.

    The page is expected at ``RINGRIFT_PLAY_URL``, by default on this machine at `PLAY_PORT`.

    Args:
        game: its id, ``<config>-<generation>-<shard>-<game>``, and ``?ply=12`` for that ply.
    """
    page = os.environ.get("RINGRIFT_PLAY_URL") or f"http://127.0.0.1:{PLAY_PORT}"
    return f"{page.rstrip('/')}/games/{game.replace('-', '/')}"

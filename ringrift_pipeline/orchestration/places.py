"""Where an instance lives: the data root, the Dagster folder in it, the progress files.

Standard library only, so that the command line may ask before it imports Dagster.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

DATA_VARIABLE = "RINGRIFT_DATA"
HOME_VARIABLE = "DAGSTER_HOME"
DEFAULT_DATA = "data"
CODE = Path(__file__).resolve().parents[2]
"""The folder of the package. Dagster puts one before all others when it imports: not the current one,
which may be a data root that somebody has sent."""
SERVICE = "ringrift_pipeline.orchestration.service"
"""The module that every service is started as."""
OWNER = "RINGRIFT_OWNER"
"""Tells a service the number of the process that starts it, and that it ends with."""
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Keeps Python from looking for modules in the current folder, in whatever a process starts too."""
TICK = 40.0  # seconds within which a tick asks a bucket: Dagster gives up on one after 60


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
    return root / one_part(run_id) if run_id else root


def one_part(name: str) -> str:
    """A name as one part of a path: what else would lead elsewhere, or is too long, is replaced.

    The ids of runs come with the requests that launch them, if those want.
    """
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
    if plain.strip(".") and len(plain) <= 200:
        return plain
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


HERE = "127.0.0.1"
TOKEN_VARIABLE = "RINGRIFT_UI_TOKEN"
"""Brings the token to the web server's process: its arguments all users of the machine can read."""
PLAY_PORT = 3001  # of the page of `ringrift play`, beside the Dagster UI's 3000
PLAY_VARIABLE = "RINGRIFT_PLAY_URL"


def play_address() -> str:
    """Where the page of ``ringrift play`` is expected: ``RINGRIFT_PLAY_URL``, else on this machine
    at `PLAY_PORT`.
    """
    return (os.environ.get(PLAY_VARIABLE) or f"http://{HERE}:{PLAY_PORT}").rstrip("/")


def own_play_port() -> int | None:
    """The port of `play_address`, if that is an address of this machine alone."""
    try:
        parts = urlsplit(play_address())
        local = parts.scheme == "http" and parts.hostname in (HERE, "localhost")
        return parts.port if local and not parts.path else None
    except ValueError:  # no number, or too large a one
        return None


def game_address(game: str) -> str:
    """Where that page shows a recorded game.

    Args:
        game: its id, ``<config>-<generation>-<shard>-<game>``, and ``?ply=12`` for that ply.
    """
    return f"{play_address()}/games/{game.replace('-', '/')}"

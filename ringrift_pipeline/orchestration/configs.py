"""The names of the twelve configs, for whoever must not wait for numba to learn them."""

from __future__ import annotations

BOARDS = ("square8", "square19", "hex8", "hexagonal")
PLAYERS = (2, 3, 4)

# ``ringrift_pipeline.game.CONFIGS`` spelled out (a test holds them together): importing the rules
# imports numba, and these names decide how fast the UI and every ``--help`` load.
CONFIGS: tuple[str, ...] = tuple(f"{board}_{players}p" for board in BOARDS for players in PLAYERS)

"""How large anything in a query may be. What is larger is refused before anything is made of it."""

from __future__ import annotations

#: Bytes of a line. The longest game known (1,562 plies of hexagonal_3p) takes 76,000.
MAX_LINE = 1 << 20
#: Moves of a query.
MAX_MOVES = 4000
#: Simulations of a position.
MAX_VISITS = 10_000
#: Characters of an id or of a player's name.
MAX_NAME = 1000
#: Priorities lie within this of 0.
MAX_PRIORITY = 1 << 31
#: Positions that wait; no line is read while there are so many.
MAX_WAITING = 16_384
#: Warnings of a query.
MAX_WARNINGS = 20
#: Characters of a value or name that are repeated in a message.
MAX_SHOWN = 100

#: Decisions of a principal variation.
LINE_DEPTH = 20
#: Positions that one player analyses at once.
SLOTS = 64
#: Bytes that the trees of these may take together.
TREE_BYTES = 256 << 20
#: Groups of positions whose trees are kept when nothing of theirs waits any more.
KEPT_GROUPS = 4
#: Loaded players that are kept.
KEPT_PLAYERS = 8
#: Positions remembered by the moves that lead to them.
KEPT_POSITIONS = 8192

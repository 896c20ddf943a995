"""What the one-ply heuristic sees in a position: seventeen features a seat.

All are counted in one pass over the board; rays of movement and capture and the axes of lines
are those of the board constants.
"""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game import layout
from ringrift_pipeline.game.compile import kernel

TERRITORY = 0  # collapsed cells owned, as a share of the territory minimum (RR-CANON-R062)
ELIMINATED = 1  # rings credited, as a share of the ring threshold (RR-CANON-R061)
CLOSENESS = 2  # square of the larger of the two shares
STACKS = 3  # stacks controlled
CAPS = 4  # cap heights of the stacks controlled
HEIGHT = 5  # rings in the stacks controlled
BURIED = 6  # own rings in stacks that others control
MARKERS = 7  # markers
MOBILITY = 8  # directions in which a stack controlled can move its height
STUCK = 9  # stacks controlled with no such direction
ATTACKS = 10  # stacks of others in sight that a stack controlled overtops
THREATENED = 11  # own stacks in sight of a stack that overtops them
LINES = 12  # runs of own markers of at least the line length (RR-CANON-R120)
NEAR_LINES = 13  # runs one marker short of it
PAIRS = 14  # shorter runs of two or more
HAND = 15  # rings in hand
BORDERS = 16  # sides of own markers on the edge or a collapsed space: half-built region borders
FEATURES = 17

_HEADER = layout.HEADER
_STACK = layout.STACK
_MARKER = layout.MARKER
_COLLAPSED = layout.COLLAPSED
_OFF_BOARD = layout.OFF_BOARD


@kernel
def count_features(b: np.ndarray, s: np.ndarray, out: np.ndarray) -> None:
    """Features of every seat of state ``s`` into ``out`` (players, FEATURES) float64."""
    players = b[layout.B_PLAYERS]
    need = b[layout.B_LINE_LENGTH]
    directions = b[layout.B_NUM_DIRECTIONS]
    axes = b[layout.B_NUM_AXES]
    for p in range(players):
        for f in range(FEATURES):
            out[p, f] = 0.0
        territory = s[layout.TERRITORY_COUNT + p] / b[layout.B_TERRITORY_MINIMUM]
        rings = s[layout.ELIMINATED + p] / b[layout.B_RING_THRESHOLD]
        out[p, TERRITORY] = territory
        out[p, ELIMINATED] = rings
        out[p, CLOSENESS] = max(territory, rings) ** 2
        out[p, HAND] = s[layout.HAND + p]
        out[p, BURIED] = s[layout.ON_BOARD + p]
    for cell in range(b[layout.B_PADDED]):
        code = s[_HEADER + cell]
        kind = code & 15
        if _STACK <= kind < _OFF_BOARD:
            p = kind - _STACK
            tall = layout.height(code)
            cap = layout.cap_height(code)
            out[p, STACKS] += 1.0
            out[p, CAPS] += cap
            out[p, HEIGHT] += tall
            out[p, BURIED] -= cap
            rings = layout.rings_of(code) >> (2 * cap)
            for _ in range(tall - cap):
                if (rings & 3) == p:
                    out[p, BURIED] -= 1.0
                rings >>= 2
            free = 0
            for k in range(directions):
                step = b[layout.B_DIRECTIONS + k]
                at = cell + step
                distance = 1
                met = s[_HEADER + at] & 15
                while met < _COLLAPSED:
                    at += step
                    distance += 1
                    met = s[_HEADER + at] & 15
                if distance > tall:
                    free += 1
                if met >= _STACK and met != _OFF_BOARD and met != kind:
                    target = s[_HEADER + at]
                    beyond = s[_HEADER + at + step] & 15
                    if cap >= layout.cap_height(target) and beyond < _COLLAPSED:
                        out[p, ATTACKS] += 1.0
                        out[met - _STACK, THREATENED] += layout.cap_height(target)
            out[p, MOBILITY] += free
            if free == 0:
                out[p, STUCK] += 1.0
        elif _MARKER <= kind < _COLLAPSED:
            p = kind - _MARKER
            out[p, MARKERS] += 1.0
            for k in range(directions):
                met = s[_HEADER + cell + b[layout.B_DIRECTIONS + k]] & 15
                if met == _OFF_BOARD or _COLLAPSED <= met < _STACK:
                    out[p, BORDERS] += 1.0
            for k in range(axes):
                step = b[layout.B_AXES + k]
                if (s[_HEADER + cell - step] & 15) == kind:
                    continue
                length = 1
                at = cell + step
                while (s[_HEADER + at] & 15) == kind:
                    length += 1
                    at += step
                if length >= need:
                    out[p, LINES] += 1.0
                elif length == need - 1:
                    out[p, NEAR_LINES] += 1.0
                elif length >= 2:
                    out[p, PAIRS] += 1.0

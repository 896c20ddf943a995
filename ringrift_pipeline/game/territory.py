"""Territory: disconnected regions, their collapse and payment (RR-CANON-R140 to R145).

Regions are found on row masks: a flood sweeps over the rows, filling each along its free cells
at once.

A region that touches no marker of the border colour B is walled in by collapsed cells and edges
alone; the same set of cells is then a component for every colour without a marker inside. It is
listed once, under the lowest such colour, or under 0 when every colour on the board has a marker
inside (or no marker is on the board).
"""

from __future__ import annotations

from ringrift_pipeline.game.bits import (
    SCRATCH_ROWS,
    carray,
    count_ones,
    count_trailing_zeros,
    row_pointer,
)
from ringrift_pipeline.game.cells import holds_buried, mask_offset, put, remove_stack
from ringrift_pipeline.game.compile import inline_kernel, inner_kernel, kernel
from ringrift_pipeline.game.layout import (
    B_BORDER_FLOOD,
    B_HEX,
    B_INVERSE,
    B_ON_BOARD,
    B_PLAYERS,
    B_ROWS,
    B_STRIDE,
    CHOOSE_TERRITORY,
    COLLAPSED,
    COUNT,
    HEADER,
    MARKER,
    ON_BOARD,
    RECOVERY,
    STACK,
    pack_move,
)


@inline_kernel
def _fill_row(free, seeds):
    """All cells of the runs of ``free`` that hold a seed."""
    up = (free & ~(free + seeds)) | seeds
    run = free
    up |= run & (up >> 1)
    run &= run >> 1
    up |= run & (up >> 2)
    run &= run >> 2
    up |= run & (up >> 4)
    run &= run >> 4
    up |= run & (up >> 8)
    run &= run >> 8
    up |= run & (up >> 16)
    return up


@inner_kernel
def _open_rows(b, s, colour, free):
    """Rows of cells that are neither collapsed nor markers of ``colour`` (1-4; 0 = none)."""
    rows = b[B_ROWS]
    walls = mask_offset(b, COLLAPSED)
    for row in range(rows):
        closed = s[walls + row] | s[walls + rows + row]
        closed |= s[walls + 2 * rows + row] | s[walls + 3 * rows + row]
        free[row] = b[B_ON_BOARD + row] & ~closed
    if colour > 0:
        markers = mask_offset(b, MARKER + colour - 1)
        for row in range(rows):
            free[row] &= ~s[markers + row]


@inner_kernel
def _flood(b, free, region, start):
    """Grow ``region`` (seeded in row ``start``) to its component of ``free`` (territory adjacency)."""
    last = b[B_ROWS] - 2
    hexagonal = b[B_HEX] != 0
    region[start] = _fill_row(free[start], region[start])
    low, high = start, start
    changed = True
    while changed:
        changed = False
        row = low + 1 if low < start else low
        row = max(1, low)
        # Downwards: from the first row of the region to beyond its last.
        while row < last:
            above = region[row]
            if above == 0:
                if row >= high:
                    break
                row += 1
                continue
            reach = above | (above >> 1) if hexagonal else above
            row += 1
            seeds = reach & free[row] & ~region[row]
            if seeds != 0:
                region[row] = _fill_row(free[row], region[row] | seeds)
                changed = True
                if row > high:
                    high = row
        # Upwards: from the last row to before its first.
        row = high
        while row > 1:
            below = region[row]
            if below == 0:
                if row <= low:
                    break
                row -= 1
                continue
            reach = below | (below << 1) if hexagonal else below
            row -= 1
            seeds = reach & free[row] & ~region[row]
            if seeds != 0:
                region[row] = _fill_row(free[row], region[row] | seeds)
                changed = True
                if row < low:
                    low = row


@inner_kernel
def _pays_outside(b, s, seat, region):
    """Whether a stack outside the region can pay for it (R143; R114 in a recovery turn)."""
    rows = b[B_ROWS]
    if s[RECOVERY] == 0:
        stacks = mask_offset(b, STACK + seat)
        outside = 0
        for row in range(1, rows - 1):
            outside |= s[stacks + row] & ~region[row]
        return outside != 0
    stride = b[B_STRIDE]
    for owner in range(b[B_PLAYERS]):
        stacks = mask_offset(b, STACK + owner)
        for row in range(1, rows - 1):
            bits = s[stacks + row] & ~region[row]
            while bits != 0:
                cell = row * stride + count_trailing_zeros(bits)
                bits &= bits - 1
                if holds_buried(s[HEADER + cell], seat):
                    return True
    return False


@inline_kernel
def _any_inside(b, s, cell_class, region):
    """Whether a cell of this class lies in the region."""
    masks = mask_offset(b, cell_class)
    found = 0
    for row in range(1, b[B_ROWS] - 1):
        found |= s[masks + row] & region[row]
    return found != 0


@inner_kernel
def _touches(b, s, colour, region):
    """Whether the region borders on a marker of ``colour`` (territory adjacency)."""
    markers = mask_offset(b, MARKER + colour - 1)
    found = 0
    for row in range(1, b[B_ROWS] - 1):
        bits = region[row]
        near = (bits << 1) | (bits >> 1) | region[row - 1] | region[row + 1]
        if b[B_HEX] != 0:
            near |= (region[row - 1] >> 1) | (region[row + 1] << 1)
        found |= near & s[markers + row]
    return found != 0


@inner_kernel
def _listed_here(b, s, colour, region):
    """Whether ``colour`` is the one under which this region is listed (module text)."""
    if colour > 0 and _touches(b, s, colour, region):
        return True
    for other in range(1, b[B_PLAYERS] + 1):
        if s[COUNT + MARKER + other - 1] > 0 and not _any_inside(b, s, MARKER + other - 1, region):
            return other == colour
    return colour == 0


@inner_kernel
def territory_moves(b, s, seat, out, most):
    """List up to ``most`` regions that ``seat`` may take now; returns how many (R140 to R144)."""
    players = b[B_PLAYERS]
    rows = b[B_ROWS]
    stride = b[B_STRIDE]
    if s[RECOVERY] == 0 and s[COUNT + STACK + seat] == 0:
        return 0
    active = 0
    for other in range(players):
        if s[ON_BOARD + other] > 0:
            active += 1
    free = carray(row_pointer(), SCRATCH_ROWS)
    left = carray(row_pointer(), SCRATCH_ROWS)
    region = carray(row_pointer(), SCRATCH_ROWS)
    n = 0
    for colour in range(players + 1):
        if colour == 0 and active < 2:
            continue
        if colour > 0 and s[COUNT + MARKER + colour - 1] == 0:
            continue
        _open_rows(b, s, colour, free)
        for row in range(rows):
            left[row] = free[row]
        whole = True
        for start in range(1, rows - 1):
            while left[start] != 0:
                for row in range(rows):
                    region[row] = 0
                region[start] = left[start] & -left[start]
                _flood(b, free, region, start)
                rest = 0
                for row in range(rows):
                    left[row] &= ~region[row]
                    rest |= left[row]
                if whole and rest == 0:
                    break  # one component: nothing lies outside it
                whole = False
                inside = 0
                for other in range(players):
                    if s[COUNT + STACK + other] > 0 and _any_inside(b, s, STACK + other, region):
                        inside += 1
                kept = inside == 1 if colour == 0 else inside < active
                if not kept:
                    continue
                if not _pays_outside(b, s, seat, region):
                    continue
                if not _listed_here(b, s, colour, region):
                    continue
                size = 0
                largest = 0
                for row in range(1, rows - 1):
                    if region[row] != 0:
                        size += count_ones(region[row])
                        top = region[row]
                        column = 0
                        while top != 0:
                            column = count_trailing_zeros(top)
                            top &= top - 1
                        largest = row * stride + column
                smallest = start * stride + count_trailing_zeros(region[start])
                out[n] = pack_move(CHOOSE_TERRITORY, smallest, largest, size, colour)
                n += 1
                if n == most:
                    return n
    return n


@kernel
def region_rows(b, s, smallest, colour, region):
    """Fill ``region`` (SCRATCH_ROWS int64) with the rows of a listed region."""
    free = carray(row_pointer(), SCRATCH_ROWS)
    _open_rows(b, s, colour, free)
    for row in range(b[B_ROWS]):
        region[row] = 0
    start = (smallest * b[B_INVERSE]) >> 16
    region[start] = 1 << (smallest - start * b[B_STRIDE])
    _flood(b, free, region, start)


@inner_kernel
def _border_rows(b, s, region, border):
    """Markers that collapse with the region: the adjacent ones and, where the board asks for it,
    all that are in contact with them (eight offsets), never inside the region (R145)."""
    rows = b[B_ROWS]
    markers = carray(row_pointer(), SCRATCH_ROWS)
    first = mask_offset(b, MARKER)
    for row in range(rows):
        found = 0
        for seat in range(b[B_PLAYERS]):
            found |= s[first + seat * rows + row]
        markers[row] = found & ~region[row]
        border[row] = 0
    for row in range(1, rows - 1):
        bits = region[row]
        near = (bits << 1) | (bits >> 1) | region[row - 1] | region[row + 1]
        if b[B_HEX] != 0:
            near |= (region[row - 1] >> 1) | (region[row + 1] << 1)
        border[row] = near & markers[row]
    if b[B_BORDER_FLOOD] == 0:
        return
    changed = True
    while changed:
        changed = False
        for row in range(1, rows - 1):
            bits = border[row - 1] | border[row] | border[row + 1]
            grown = border[row] | ((bits | (bits << 1) | (bits >> 1)) & markers[row])
            if grown != border[row]:
                border[row] = grown
                changed = True


@inner_kernel
def collapse_region(b, s, seat, smallest, colour):
    """Collapse a region and its border for ``seat``; every ring inside is credited to it."""
    region = carray(row_pointer(), SCRATCH_ROWS)
    border = carray(row_pointer(), SCRATCH_ROWS)
    region_rows(b, s, smallest, colour, region)
    _border_rows(b, s, region, border)
    stride = b[B_STRIDE]
    for row in range(1, b[B_ROWS] - 1):
        bits = region[row] | border[row]
        while bits != 0:
            cell = row * stride + count_trailing_zeros(bits)
            bits &= bits - 1
            if s[HEADER + cell] & 15 >= STACK:
                remove_stack(b, s, cell, seat, COLLAPSED + seat)
            else:
                put(b, s, cell, COLLAPSED + seat)

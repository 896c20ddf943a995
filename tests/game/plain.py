"""Legal moves once more, in plain Python on dictionaries: slow, and nothing of the kernels' tricks.

It reads the trace form of a state (with ``resume``) and answers with move records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Cell = tuple[int, int]
RINGS = {"square8": 18, "square19": 72, "hex8": 18, "hexagonal": 96}
SQUARE_STEPS = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]
HEX_STEPS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1)]


class Plain:
    """One position."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.board, players = record["resume"]["config"].rsplit("_", 1)
        self.players = int(players[0])
        self.hexagonal = self.board.startswith("hex")
        if self.hexagonal:
            r = {"hex8": 4, "hexagonal": 12}[self.board]
            self.cells = {
                (x, y) for x in range(-r, r + 1) for y in range(-r, r + 1) if abs(x + y) <= r
            }
        else:
            n = int(self.board[6:])
            self.cells = {(x, y) for x in range(n) for y in range(n)}
        self.steps = HEX_STEPS if self.hexagonal else SQUARE_STEPS
        self.near = HEX_STEPS if self.hexagonal else [(1, 0), (-1, 0), (0, 1), (0, -1)]
        self.axes = (
            [(1, 0), (1, -1), (0, -1)] if self.hexagonal else [(1, 0), (1, 1), (0, 1), (1, -1)]
        )
        short = self.board in ("square8", "hex8") and self.players > 2
        self.length = 3 if short else 4
        self.stacks = {self.cell(k): [int(c) for c in v] for k, v in record["stacks"].items()}
        self.markers = {self.cell(k): v for k, v in record["markers"].items()}
        self.collapsed = {self.cell(k): v for k, v in record["collapsed"].items()}
        self.hand = record["hand"]
        self.phase, self.seat = record["phase"], record["player"]
        self.must = self.cell(record["must_move"]) if record["must_move"] else None
        self.pending = record["pending_elimination"]
        self.resume = record["resume"]

    def cell(self, name: str) -> Cell:
        x, y = name.split(",")[:2]
        return int(x), int(y)

    def name(self, cell: Cell) -> str:
        x, y = cell
        return f"{x},{y},{-x - y}" if self.hexagonal else f"{x},{y}"

    def free(self, cell: Cell) -> bool:
        return cell in self.cells and cell not in self.stacks and cell not in self.collapsed

    @staticmethod
    def cap(rings: list[int]) -> int:
        tall = 0
        while tall < len(rings) and rings[-1 - tall] == rings[-1]:
            tall += 1
        return tall

    # --- movement -------------------------------------------------------------------------------
    def simple(self, at: Cell, height: int) -> Iterator[Cell]:
        for dx, dy in self.steps:
            distance, to = 1, (at[0] + dx, at[1] + dy)
            while self.free(to):
                if distance >= height:
                    yield to
                distance, to = distance + 1, (to[0] + dx, to[1] + dy)

    def captures(self, at: Cell, height: int, cap: int) -> Iterator[tuple[Cell, Cell]]:
        for dx, dy in self.steps:
            k = 1
            while self.free((at[0] + k * dx, at[1] + k * dy)):
                k += 1
            target = (at[0] + k * dx, at[1] + k * dy)
            if target not in self.stacks or self.cap(self.stacks[target]) > cap:
                continue
            k += 1
            while self.free((at[0] + k * dx, at[1] + k * dy)):
                if k >= height:
                    yield target, (at[0] + k * dx, at[1] + k * dy)
                k += 1

    def acts(self, at: Cell, rings: list[int]) -> bool:
        """Whether this stack, put on ``at``, could move or capture."""
        cap = self.cap(rings)
        return any(self.simple(at, len(rings))) or any(
            True for _ in self.captures(at, len(rings), cap)
        )

    def own(self) -> list[Cell]:
        return [cell for cell, rings in self.stacks.items() if rings[-1] == self.seat]

    def eligible(self) -> bool:
        buried = any(self.seat in rings[:-1] for rings in self.stacks.values())
        return not self.own() and self.seat in self.markers.values() and buried

    def placement(self) -> Iterator[dict[str, Any]]:
        hand = self.hand[self.seat - 1]
        for cell in self.cells:
            if cell in self.markers or cell in self.collapsed or hand == 0:
                continue
            below = self.stacks.get(cell, [])
            for count in range(1, (1 if below else min(hand, 3)) + 1):
                if self.acts(cell, below + [self.seat] * count):
                    yield {"type": "place_ring", "to": self.name(cell), "count": count}
        if hand and (any(self.acts(c, self.stacks[c]) for c in self.own()) or self.eligible()):
            yield {"type": "skip_placement"}

    def movement(self) -> Iterator[dict[str, Any]]:
        for at in [self.must] if self.must else self.own():
            rings = self.stacks[at]
            for to in self.simple(at, len(rings)):
                yield {"type": "move_stack", "from": self.name(at), "to": self.name(to)}
            yield from self.segments(at, "overtaking_capture")

    def segments(self, at: Cell, kind: str) -> Iterator[dict[str, Any]]:
        rings = self.stacks[at]
        for target, to in self.captures(at, len(rings), self.cap(rings)):
            yield {
                "type": kind,
                "from": self.name(at),
                "target": self.name(target),
                "to": self.name(to),
            }

    # --- recovery -------------------------------------------------------------------------------
    def payers(self) -> list[str]:
        return [self.name(c) for c, rings in self.stacks.items() if self.seat in rings[:-1]]

    def recovery(self) -> Iterator[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for start in [c for c, owner in self.markers.items() if owner == self.seat]:
            for dx, dy in self.steps:
                to = (start[0] + dx, start[1] + dy)
                slide = {"type": "recovery_slide", "from": self.name(start), "to": self.name(to)}
                if to in self.stacks:
                    strike = slide | {"mode": "stack_strike"}
                    others += [strike | {"extract": payer} for payer in self.payers()]
                elif to in self.cells and to not in self.markers and to not in self.collapsed:
                    fallback = slide | {"mode": "fallback"}
                    others += [fallback | {"extract": payer} for payer in self.payers()]
                    line = self.longest(start, to)
                    if line:
                        whole = slide | {"mode": "line"}
                        lines += [whole | {"extract": payer} for payer in self.payers()]
                        if len(line) > self.length:
                            for k in range(len(line) - self.length + 1):
                                window = line[k : k + self.length]
                                if to in window:
                                    names = sorted(map(self.name, window))
                                    lines.append(whole | {"collapse": names})
        yield from lines or others
        yield {"type": "skip_recovery"}

    def longest(self, start: Cell, to: Cell) -> list[Cell]:
        mine = {c for c, owner in self.markers.items() if owner == self.seat} - {start} | {to}
        best: list[Cell] = []
        for dx, dy in self.axes:
            line = self.run(mine, to, -dx, -dy)[::-1] + self.run(mine, to, dx, dy)[1:]
            if len(line) >= self.length and len(line) > len(best):
                best = line
        return best

    @staticmethod
    def run(mine: set[Cell], at: Cell, dx: int, dy: int) -> list[Cell]:
        cells = []
        while at in mine:
            cells.append(at)
            at = (at[0] + dx, at[1] + dy)
        return cells

    # --- lines ----------------------------------------------------------------------------------
    def line_choices(self) -> Iterator[dict[str, Any]]:
        mine = {c for c, owner in self.markers.items() if owner == self.seat}
        for at in mine:
            for dx, dy in self.axes:
                if (at[0] - dx, at[1] - dy) in mine:
                    continue
                line = self.run(mine, at, dx, dy)
                names = sorted(map(self.name, line))
                if len(line) == self.length:
                    yield {"type": "process_line", "line": names}
                elif len(line) > self.length:
                    choice = {"type": "choose_line_option", "line": names}
                    yield choice | {"collapse": names}
                    for k in range(len(line) - self.length + 1):
                        window = sorted(map(self.name, line[k : k + self.length]))
                        yield choice | {"collapse": window}

    # --- territory ------------------------------------------------------------------------------
    def components(self, open_cells: set[Cell]) -> Iterator[frozenset[Cell]]:
        left = set(open_cells)
        while left:
            todo = [left.pop()]
            found = set(todo)
            while todo:
                x, y = todo.pop()
                for dx, dy in self.near:
                    cell = (x + dx, y + dy)
                    if cell in left:
                        left.discard(cell)
                        found.add(cell)
                        todo.append(cell)
            yield frozenset(found)

    def regions(self) -> set[frozenset[Cell]]:
        active = {ring for rings in self.stacks.values() for ring in rings}
        solid = self.cells - set(self.collapsed)
        found: set[frozenset[Cell]] = set()

        def controlling(region: frozenset[Cell]) -> set[int]:
            return {rings[-1] for cell, rings in self.stacks.items() if cell in region}

        for colour in set(self.markers.values()):
            walls = {c for c, owner in self.markers.items() if owner == colour}
            for region in self.components(solid - walls):
                if len(controlling(region)) < len(active):
                    found.add(region)
        if len(active) >= 2:
            for region in self.components(solid):
                if len(controlling(region)) == 1:
                    found.add(region)

        def payable(region: frozenset[Cell]) -> bool:
            outside = [rings for cell, rings in self.stacks.items() if cell not in region]
            if self.resume["recovery"]:
                return any(self.seat in rings[:-1] for rings in outside)
            return any(rings[-1] == self.seat for rings in outside)

        return {region for region in found if payable(region)}

    def territory(self) -> Iterator[dict[str, Any]]:
        for region in self.regions():
            names = sorted(map(self.name, region))
            yield {"type": "choose_territory_option", "region": names}

    def after_border(self, region: frozenset[Cell]) -> set[Cell]:
        """The cells that collapse with a region, itself included."""
        border = {
            (x + dx, y + dy)
            for x, y in region
            for dx, dy in self.near
            if (x + dx, y + dy) in self.markers and (x + dx, y + dy) not in region
        }
        todo = list(border) if self.board != "hexagonal" else []
        while todo:
            x, y = todo.pop()
            for dx, dy in SQUARE_STEPS:
                cell = (x + dx, y + dy)
                if cell in self.markers and cell not in region and cell not in border:
                    border.add(cell)
                    todo.append(cell)
        return border | region

    # --- all together ---------------------------------------------------------------------------
    def legal(self) -> list[dict[str, Any]]:
        """Records of the legal moves."""
        own = [self.name(cell) for cell in self.own()]
        if self.phase == "ring_placement":
            swap = self.resume["swap_rule"] and self.resume["turn"] == 2
            extra = [{"type": "swap_sides"}] if swap and not self.resume["swapped"] else []
            return (list(self.placement()) or [{"type": "no_placement_action"}]) + extra
        if self.phase == "movement":
            found = list(self.movement())
            if not found and self.eligible():
                found = list(self.recovery())
            return found or [{"type": "no_movement_action"}]
        if self.phase == "capture":
            assert self.must is not None
            return [*self.segments(self.must, "overtaking_capture"), {"type": "skip_capture"}]
        if self.phase == "chain_capture":
            assert self.must is not None
            return list(self.segments(self.must, "continue_capture_segment"))
        if self.phase == "line_processing":
            if self.pending:
                return [{"type": "eliminate_rings_from_stack", "to": to} for to in own]
            return list(self.line_choices()) or [{"type": "no_line_action"}]
        if self.phase == "territory_processing":
            if self.resume["payment"]:
                payers = self.payers() if self.resume["recovery"] else own
                return [{"type": "eliminate_rings_from_stack", "to": to} for to in payers]
            found = list(self.territory())
            if found:
                return [*found, {"type": "skip_territory_processing"}]
            return [{"type": "no_territory_action"}]
        if self.phase == "forced_elimination":
            return [{"type": "forced_elimination", "to": to} for to in own]
        return []

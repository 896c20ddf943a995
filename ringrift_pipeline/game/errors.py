"""What can be wrong with a move or a record."""

from __future__ import annotations


class IllegalMoveError(ValueError):
    """A move that the position does not offer; the state is unchanged.

    Attributes:
        move: the refused move.
        phase: phase of the position.
        reason: why it is refused, in words.
    """

    def __init__(self, move: object, phase: str, reason: str) -> None:
        super().__init__(f"illegal move {move} in phase {phase}: {reason}")
        self.move = move
        self.phase = phase
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[object, str, str]]:
        return type(self), (self.move, self.phase, self.reason)


class RecordError(ValueError):
    """A record (state, move or trace) that is truncated, malformed or contradicts itself."""

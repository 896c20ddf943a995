"""Sequential halving (Karnin et al. 2013) as Gumbel MuZero spends its simulations."""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game.compile import kernel


@kernel
def write_widths(considered: int, simulations: int, widths: np.ndarray) -> int:
    """Write :func:`round_widths` into ``widths`` (at least ``simulations``,); how many there are."""
    if considered == 1:
        for turn in range(simulations):
            widths[turn] = 1
        return simulations
    phases = 0
    while (1 << phases) < considered:
        phases += 1
    turns = 0
    left = simulations
    width = considered
    while left > 0:
        for _ in range(max(1, simulations // (phases * width))):
            if left > 0:
                widths[turns] = min(width, left)
                left -= widths[turns]
                turns += 1
        width = max(2, width // 2)
    return turns


def round_widths(considered: int, simulations: int) -> tuple[int, ...]:
    """How many root actions each round visits once, in order; the widths sum to ``simulations``.

    ``considered`` actions start. A phase with ``k`` actions left has
    ``max(1, simulations // (ceil(log2(considered)) * k))`` rounds; then the better half of them
    goes on, two at the least, until the simulations are used up. The last round may be cut short.
    (Danihelka et al. 2022, "Policy improvement by planning with Gumbel", section 3.4.)

    Raises ``ValueError`` for a negative number of simulations or less than one action.
    """
    if considered < 1:
        raise ValueError(f"sequential halving needs at least one action, got {considered}")
    if simulations < 0:
        raise ValueError(f"the number of simulations must not be negative, got {simulations}")
    widths = np.empty(simulations, dtype=np.int64)
    return tuple(widths[: write_widths(considered, simulations, widths)].tolist())

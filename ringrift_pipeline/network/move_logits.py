"""The look-up of the moves on the CPU: logits and chances from what a network says of a board.

The same sums as ``PolicyHead.gather_flat``, without a tensor per term.
"""

from __future__ import annotations

import math

import numpy as np

from ringrift_pipeline.game.compile import kernel
from ringrift_pipeline.network.moves import CELLS_PER_MOVE, INTERACTION_CHANNELS

#: Logit of the padding behind a state's legal moves: finite, and zero after a softmax.
MASKED_LOGIT = -1e9


@kernel
def move_logits(  # type: ignore[no-untyped-def]
    cells,
    kind_bias,
    kinds,
    move_cells,
    ranks,
    counts,
    plane_index,
    kind_embed,
    kind_out,
    rank_table,
    rank_slope,
    out,
):
    """Logits of the described moves into ``out`` (B, W) float32, ``MASKED_LOGIT`` behind them.

    ``cells`` (B, N*N, P + 3 * E) and ``kind_bias`` (B, K) float32 are the board network's;
    ``kinds`` and ``ranks`` (B, L), ``move_cells`` (B, L, 3) and ``counts`` (B,) are the
    encoder's; ``plane_index`` (K, 3) int64, ``kind_embed`` and ``kind_out`` (K, E), ``rank_table``
    (K, R) and ``rank_slope`` (K,) float32 are the policy head's; E is INTERACTION_CHANNELS.
    """
    width = INTERACTION_CHANNELS  # known to the compiler, so that the sums become vectors
    planes = cells.shape[2] - CELLS_PER_MOVE * width
    last_rank = rank_table.shape[1] - 1
    inner = np.empty(width, dtype=np.float32)
    for row in range(out.shape[0]):
        count = counts[row]
        for i in range(count):
            kind = np.int64(kinds[row, i])
            rank = np.int64(ranks[row, i])
            logit = kind_bias[row, kind] + rank_table[kind, min(rank, last_rank)]
            if rank > 0:
                logit += rank_slope[kind] * np.float32(math.log1p(np.float32(rank)))
            for k in range(width):
                inner[k] = kind_embed[kind, k]
            for slot in range(CELLS_PER_MOVE):
                cell = np.int64(move_cells[row, i, slot])
                if cell < 0:
                    continue
                logit += cells[row, cell, plane_index[kind, slot]]
                first = planes + slot * width
                part = cells[row, cell, first : first + width]
                for k in range(width):
                    inner[k] += part[k]
            for k in range(width):
                logit += max(inner[k], np.float32(0.0)) * kind_out[kind, k]
            out[row, i] = logit
        for i in range(count, out.shape[1]):
            out[row, i] = MASKED_LOGIT


@kernel
def seat_chances(value_logits, movers, temperature, out):  # type: ignore[no-untyped-def]
    """Chances of the absolute seats into ``out`` (B, players) float32; rows sum to 1.

    ``value_logits`` (B, 4) are relative to the players to move, ``movers`` (B,) int64: absolute
    seat s is relative seat (s - mover) mod players. Logits are divided by ``temperature``.
    """
    players = out.shape[1]
    for row in range(out.shape[0]):
        most = value_logits[row, 0]
        for seat in range(1, players):
            most = max(most, value_logits[row, seat])
        total = 0.0
        for seat in range(players):
            total += math.exp((np.float64(value_logits[row, seat]) - most) / temperature)
        for seat in range(players):
            chance = math.exp((np.float64(value_logits[row, seat]) - most) / temperature) / total
            out[row, (seat + movers[row]) % players] = chance

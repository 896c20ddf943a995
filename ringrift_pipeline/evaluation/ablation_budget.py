"""How large an ablation is unless told otherwise; imports nothing, for whoever only shows it."""

from __future__ import annotations

SEEDS = 8
"""Paired seeds. Corrected for 36 comparisons, a difference must be eight times its standard error
to be beyond doubt with five of them, five times with eight."""

STEPS = 800
"""Optimizer steps of a run."""
# Of square8_2p with the network of the preset `hour` (4 blocks, 32 channels), a core trains 1,600
# rows/s in one thread and judges 4,400, measured in processor time on a busy machine: 256 * 800
# rows in 128 s, 33,000 rows of judges in 8 s. A seed has 10 trainings and judges 12 single models
# and 2 ensembles of 3: 1,420 s. Eight seeds on two cores: 95 minutes, which they took beside other
# work; the runs themselves needed 66 minutes of each core.

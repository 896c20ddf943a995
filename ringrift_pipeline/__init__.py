"""RingRift self-play training as one Dagster project."""

import os

__version__ = "0.1.0"

# Read once, when torch loads OpenMP: its threads then sleep instead of spinning while they wait.
# Where processes share cores, spinning made training on two threads 14 times slower (measured).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""RingRift self-play training as one Dagster project."""

__version__ = "0.1.0"

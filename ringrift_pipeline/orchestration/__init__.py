"""Everything Dagster: assets, checks, the sensor, schedules, jobs, resources and the daemon.

Importing this package imports nothing; ``ringrift_pipeline.definitions`` builds the code location
from it, and the command line uses ``orchestration.loop`` and ``orchestration.instance``.
"""

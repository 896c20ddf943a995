"""The code location: ``dagster dev -m ringrift_pipeline.definitions``.

Loading it imports neither torch nor numba nor pandas: steps import what they need.
"""

from ringrift_pipeline.orchestration.build import build_definitions

defs = build_definitions()

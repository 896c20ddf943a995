"""What every step's process has in memory already when it is forked.

Imported by the fork server of a run, never by the code location. It loads what steps load anyway,
and resolves the jobs once instead of once a step. Nothing here may start a thread or touch a
device: a CUDA context must never exist before the fork.
"""

import gc

# What Dagster loads when it opens its instance and runs a step: two thirds of a second of a core,
# which each of a generation's thirty steps would else spend before it begins.
import dagster._core.execution.telemetry
import dagster._core.instance.factory
import dagster._core.secrets.env_file
import dagster._core.storage.local_compute_log_manager
import dagster._core.storage.root
import dagster._core.storage.sqlite_storage
import dagster._core.storage.upath_io_manager
import dagster._core.system_config.composite_descent
import dagster._core.utility_ops
import dagster._core.workspace.autodiscovery
import dagster._daemon.controller  # noqa: F401

# Statistics, which a quarter of the steps need. Polars and Arrow, which most of them need, start threads
# as they are imported; these would be missing in a child. OpenBLAS makes its own anew.
import scipy.optimize  # noqa: F401
import scipy.sparse  # noqa: F401
import scipy.special  # noqa: F401
import torch  # noqa: F401

import ringrift_pipeline.libraries.compiler
import ringrift_pipeline.orchestration.run_order  # noqa: F401
from ringrift_pipeline.definitions import defs

defs.get_repository_def().load_all_definitions()
gc.freeze()  # the children's collector leaves these pages shared

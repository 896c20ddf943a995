"""What every step's process has in memory already when it is forked.

Imported by the fork server of a run, never by the code location. It loads what steps load anyway,
and resolves the jobs once instead of once a step. Nothing here may start a thread or touch a
device: a CUDA context must never exist before the fork.
"""

import gc

import numba  # noqa: F401
import torch  # noqa: F401

from ringrift_pipeline.definitions import defs

defs.get_repository_def().load_all_definitions()
gc.freeze()  # the children's collector leaves these pages shared

"""Global state during a step: threads, random numbers, determinism; restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ringrift_pipeline.enhancements.seed_management import SeedManager, set_reproducible_seed


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` torch threads, so that sums round alike wherever it runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Run a block with every global generator seeded and only deterministic algorithms, so that
    the same seed gives the same weights on the same machine; what was set before is restored.
    """
    outer = SeedManager(0)
    generators = outer.save_state()
    algorithms = torch.are_deterministic_algorithms_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    set_reproducible_seed(seed)
    debugging.fill_uninitialized_memory = False  # a debugging aid, and slow
    try:
        yield
    finally:
        debugging.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(algorithms)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        outer.load_state(generators)

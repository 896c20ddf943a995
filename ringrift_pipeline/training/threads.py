"""Torch's global state during a step: threads and random numbers, restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
def torch_seed(seed: int) -> Iterator[None]:
    """Run a block with torch's global generators seeded; their states before are restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

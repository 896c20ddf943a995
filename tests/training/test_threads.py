from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ringrift_pipeline.training.threads import reproducible, torch_threads


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_decides_every_global_generator_and_leaves_no_trace() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = [draws() for _ in range(2)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = draws()
    inside = []
    for seed in (7, 7, 8):
        with reproducible(seed):
            assert torch.are_deterministic_algorithms_enabled()
            inside.append(draws())
    assert inside[0] == inside[1]
    assert all(one != other for one, other in zip(inside[0], inside[2], strict=True))
    assert [before, draws()] == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_everything_is_restored_after_an_error_too() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(KeyError), torch_threads(threads + 1), reproducible(3):
        assert torch.get_num_threads() == threads + 1
        torch.rand(5)
        raise KeyError
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()

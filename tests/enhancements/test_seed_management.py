"""Streams do not collide, and a saved state continues bit for bit."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ringrift_pipeline.enhancements.seed_management import (
    SeedManager,
    _torch_template,
    set_reproducible_seed,
)


@pytest.fixture(autouse=True)
def leave_the_process_as_it_was() -> Iterator[None]:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def draw() -> tuple[Any, ...]:
    """Draws of all three global generators, Gaussians of each included."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tobytes(),
        np.random.randn(),
        torch.rand(3).numpy().tobytes(),
        torch.randn(17).numpy().tobytes(),
    )


def first(generator: torch.Generator) -> bytes:
    return torch.randint(0, 2**62, (4,), generator=generator).numpy().tobytes()


class Noise(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> list[float]:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        return [worker.id, random.random(), np.random.rand(), float(torch.rand(()))]


class Derived(IterableDataset):
    """Draws from what torch's documentation derives a worker's own generator from."""

    def __iter__(self) -> Iterator[float]:
        generator = np.random.default_rng(torch.initial_seed())
        return iter([generator.random() for _ in range(3)])


def test_same_seed_same_draws_other_seed_other_draws() -> None:
    seen = []
    for seed in (7, 7, 8, 0, 2**32 - 1, 2**32, 2**100):
        SeedManager(seed).set_global_seed()
        seen.append(draw())
    assert seen[0] == seen[1]
    assert len(set(seen)) == 6
    for column in zip(*seen, strict=True):
        assert len(set(column)) == 6


def test_streams_do_not_collide() -> None:
    """Forks, workers, generators, positions, and neighbouring seeds, all in one heap."""
    manager = SeedManager(2**32 - 1)
    seen: list[bytes] = []
    managers = [manager, SeedManager(0), SeedManager(2**32), SeedManager(1)]
    managers += [manager.fork(i) for i in range(8)]
    managers += [manager.fork(1).fork(i) for i in range(3)]
    moved = SeedManager(2**32 - 1)
    moved.advance(3)
    managers += [moved, moved.fork(1)]
    for one in managers:
        seen += [first(one.get_generator(i)) for i in range(8)]
        seen += [one.get_numpy_generator(i).bytes(32) for i in range(8)]
        one.set_global_seed()
        seen.append(torch.randint(0, 2**62, (4,)).numpy().tobytes())
        for worker in range(8):
            one.get_worker_init_fn()(worker)
            seen += [torch.randint(0, 2**62, (4,)).numpy().tobytes(), np.random.bytes(32)]
    assert len(set(seen)) == len(seen) > 500


def test_fork_is_not_worker() -> None:
    manager = SeedManager(5)
    manager.get_worker_init_fn()(1)
    as_worker = draw()
    manager.fork(1).set_global_seed()
    assert draw() != as_worker


def test_torch_generators_differ_beyond_the_32_bits_torch_looks_at() -> None:
    plain = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1 + 2**32)
    assert first(plain[0]) == first(plain[1])  # why the whole state is set
    assert _torch_template() is not None  # this torch's layout is the one we know
    state = SeedManager(3).get_generator(0).get_state()
    low = torch.Generator().manual_seed(SeedManager(3).get_generator(0).initial_seed())
    assert not torch.equal(state, low.get_state())
    values = torch.rand(200_000, generator=SeedManager(3).get_generator(0)).double()
    assert abs(float(values.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 200_000)
    assert abs(float(torch.corrcoef(torch.stack([values[1:], values[:-1]]))[0, 1])) < 0.01


def test_initial_seed_tells_seeds_generators_and_workers_apart() -> None:
    seeds: list[int] = []
    for seed in (0, 1, 5):
        manager = SeedManager(seed)
        manager.set_global_seed()
        seeds.append(torch.initial_seed())
        seeds += [manager.get_generator(i).initial_seed() for i in range(3)]
        for worker in range(3):
            manager.get_worker_init_fn()(worker)
            seeds.append(torch.initial_seed())
    assert len(set(seeds)) == len(seeds)
    assert SeedManager(5).get_generator(1).initial_seed() == seeds[16]
    resumed = torch.Generator()
    resumed.set_state(SeedManager(5).get_generator(1).get_state())
    assert resumed.initial_seed() == seeds[16]


def test_a_generator_derived_from_initial_seed_differs_by_worker_and_seed() -> None:
    drawn = []
    for seed in (3, 4):
        manager = SeedManager(seed)
        loader = DataLoader(
            Derived(),
            batch_size=None,
            num_workers=2,
            worker_init_fn=manager.get_worker_init_fn(),
            generator=manager.get_generator(1),
            multiprocessing_context="fork",
        )
        drawn += list(loader)
    assert len(set(drawn)) == len(drawn) == 12


def test_fork_and_advance_are_reproducible() -> None:
    a, b = SeedManager(3), SeedManager(3)
    a.advance(2)
    b.advance()
    b.advance()
    assert first(a.fork(4).get_generator(1)) == first(b.fork(4).get_generator(1))
    assert first(a.get_generator()) != first(SeedManager(3).get_generator())


def test_full_state_restores_bit_for_bit_through_json() -> None:
    manager = SeedManager(11).fork(2)
    manager.set_global_seed()
    manager.advance(5)
    draw()
    random.gauss(0, 1), np.random.randn(), torch.randn(3)  # cached second Gaussians
    saved = json.loads(json.dumps(manager.save_state()))
    expected = [draw() for _ in range(3)]
    SeedManager(99).set_global_seed()
    other = SeedManager(1)
    other.load_state(saved)
    assert [draw() for _ in range(3)] == expected
    assert first(other.get_generator(3)) == first(manager.get_generator(3))
    assert json.loads(json.dumps(other.get_seed_info())) == manager.get_seed_info()
    other.load_state_dict(other.state_dict())


def test_malformed_state_is_refused_and_changes_nothing() -> None:
    manager = SeedManager(4)
    good = json.loads(json.dumps(manager.save_state()))
    other = SeedManager(8)
    other.set_global_seed()
    expected = (other.get_seed_info(), other.save_state())
    for part, value in [
        ("seed", -1),
        ("position", 2**32),
        ("python", [3, [1, 2], None]),
        ("numpy", {"key": [1, 2], "pos": 0, "has_gauss": 0, "gauss": 0.0}),
        ("torch", "AAAA"),
        ("torch", 3),
    ]:
        with pytest.raises(ValueError, match=part):
            other.load_state({**good, part: value})
        with pytest.raises(ValueError, match=part):
            other.load_state({k: v for k, v in good.items() if k != part})
    assert (other.get_seed_info(), other.save_state()) == expected


def test_data_loader_workers_differ_repeat_by_seed_and_change_by_epoch() -> None:
    def epochs(seed: int) -> list[list[list[float]]]:
        manager = SeedManager(seed)
        loader = DataLoader(
            Noise(),
            batch_size=None,
            num_workers=2,
            worker_init_fn=manager.get_worker_init_fn(),
            generator=manager.get_generator(1),
            multiprocessing_context="fork",
        )
        return [[list(item) for item in loader] for _ in range(2)]

    one, again, other = epochs(3), epochs(3), epochs(4)
    assert one == again
    numbers = [x for run in (one, other) for epoch in run for item in epoch for x in item[1:]]
    assert len(set(numbers)) == len(numbers) == 96
    init = SeedManager(3).fork(2).get_worker_init_fn()
    assert pickle.loads(pickle.dumps(init)) == init


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_is_real_without_cuda(deterministic: bool) -> None:
    manager = SeedManager(1, deterministic=deterministic)
    manager.set_global_seed()
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic


def test_set_reproducible_seed_trains_the_same_network_twice() -> None:
    def train() -> bytes:
        set_reproducible_seed(21)
        model = torch.nn.Sequential(
            torch.nn.Linear(5, 9), torch.nn.Dropout(), torch.nn.Linear(9, 1)
        )
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(5):
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
        return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    assert train() == train()
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [-1, 2**128, 1.5, True, "7"])
def test_bad_seeds_are_named(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        SeedManager(seed)


def test_bad_offsets_change_nothing() -> None:
    manager = SeedManager(1)
    for call in (manager.fork, manager.get_generator, manager.get_numpy_generator):
        for bad in (-1, 2**32, 0.5):
            with pytest.raises(ValueError, match="offset"):
                call(bad)  # type: ignore[operator]
    with pytest.raises(ValueError, match="steps"):
        manager.advance(-1)
    with pytest.raises(ValueError, match="worker_id"):
        manager.get_worker_init_fn()(-1)
    assert manager.get_seed_info()["position"] == 0
    assert SeedManager().seed != SeedManager().seed

"""Compiled kernels of every room leave the interpreter to other threads while they run."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from numba.core.dispatcher import Dispatcher

from ringrift_pipeline.game import get_rules
from ringrift_pipeline.game.compile import KERNEL_ROOMS
from ringrift_pipeline.network import Evaluator, NetworkConfig, RingRiftNetwork, encoder
from ringrift_pipeline.search import GumbelSearch, rounds
from ringrift_pipeline.selfplay import heuristic_games, stepping
from ringrift_pipeline.selfplay.play import play_heuristic_games, play_search_games
from ringrift_pipeline.selfplay.stopping import Reporter

from .conftest import settings

LONG_KERNELS = (
    (encoder, "encode_batch"),
    (rounds, "gather"),
    (rounds, "absorb"),
    (stepping, "advance_games"),
    (heuristic_games, "play_decisions"),
)
"""Where Python calls the kernels that selfplay spends its time in."""


def kernels_of(room: str) -> dict[str, Dispatcher]:
    """The compiled functions that a room's modules define, by name."""
    package = importlib.import_module(f"ringrift_pipeline.{room}")
    found = {}
    for about in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for name, value in vars(importlib.import_module(about.name)).items():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == about.name:
                found[f"{about.name}.{name}"] = value
    return found


@pytest.mark.parametrize("room", KERNEL_ROOMS)
def test_every_kernel_is_compiled_to_run_without_the_gil(room: str) -> None:
    found = kernels_of(room)
    assert bool(found) == (room in ("game", "network", "search", "selfplay"))
    for name, kernel in found.items():
        assert kernel.targetoptions.get("nogil") is True, name


def play() -> None:
    """Beginnings of games by search and by the heuristic, many side by side."""
    rules = get_rules("square8_2p")
    chosen = settings(selfplay__max_plies=12, selfplay__parallel_games=256)
    network = RingRiftNetwork(NetworkConfig(1, 8, 8, rules.geometry, rules.players), seed=1)
    evaluator = Evaluator(network, rules, "cpu", threads=1, precision="float32")
    search = GumbelSearch(rules, evaluator, chosen.search, max_batch=512)
    play_search_games("square8_2p", 256, 1, chosen, search, Reporter())
    play_heuristic_games("square8_2p", 64, 1, chosen, Reporter())


def test_another_thread_gets_on_while_a_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python is told to take the GIL from nobody, so this thread only moves while it is let go of.

    What it does between the start and the end of a kernel is therefore done without the GIL.
    """
    play()  # everything is compiled before the names stand for something else
    steps = 0
    meanwhile: Counter[str] = Counter()

    def watched(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def call(*arguments: Any) -> Any:
            before = steps
            result = kernel(*arguments)
            meanwhile[name] += steps - before
            return result

        return call

    for module, name in LONG_KERNELS:
        kernel = getattr(module, name)
        assert isinstance(kernel, Dispatcher)
        monkeypatch.setattr(module, name, watched(name, kernel))
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(100.0)
        for _ in range(20):  # on a busy machine this thread may sleep through a kernel
            playing = threading.Thread(target=play)
            playing.start()
            while playing.is_alive():
                steps += 1
                time.sleep(1e-4)  # lets go of the GIL, and long enough for the other to take it
            playing.join()
            if all(meanwhile[name] for _, name in LONG_KERNELS):
                break
    finally:
        sys.setswitchinterval(interval)
    assert {name for name, count in meanwhile.items() if count} == {n for _, n in LONG_KERNELS}

"""Kernels are compiled before they are needed, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringrift_pipeline.game.compile import cache_folder, is_compiled
from ringrift_pipeline.selfplay import warm_up as module


def test_what_was_compiled_before_is_not_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []
    monkeypatch.setenv("RINGRIFT_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "MARKER", ("selfplay", "of this test"))
    monkeypatch.setattr(module, "_use_everything", played.append)
    cache_folder("selfplay").mkdir(parents=True)
    assert not is_compiled(*module.MARKER)
    for config in ("hex8_2p", "square8_2p"):
        module.warm_up(config)
    assert played == ["hex8_2p"] and is_compiled(*module.MARKER)

"""What every room's tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TRACES = REPOSITORY.parent / "shared" / "traces"


@pytest.fixture(scope="session")
def traces_folder() -> Path:
    """Folder of the reference traces; the test is skipped where they are absent."""
    if not TRACES.is_dir():
        pytest.skip(f"the reference traces are not here ({TRACES} is missing)")
    return TRACES


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; the test is skipped where either is missing.

    A module's own: while one is driven its event loop counts as running, so that a process can drive
    no second one, and other tests no loop of their own.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("RINGRIFT_CHROMIUM")
    path = named or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here: install it or name it in RINGRIFT_CHROMIUM")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

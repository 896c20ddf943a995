"""What every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TRACES = REPOSITORY.parent / "shared" / "traces"


@pytest.fixture(scope="session")
def traces_folder() -> Path:
    """Folder of the reference traces; the test is skipped where they are absent."""
    if not TRACES.is_dir():
        pytest.skip(f"the reference traces are not here ({TRACES} is missing)")
    return TRACES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

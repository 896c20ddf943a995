"""A cluster for the tests of a module: servers, a code location, and workers as a test needs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestration.served import Served, served

from . import toy
from .cluster import Cluster, cluster, missing

# Short enough for a test, long enough for a machine that has other work.
PATIENCE = {"RINGRIFT_CELERY_LOST_AFTER": "12", "RINGRIFT_CELERY_NO_WORKER_AFTER": "15"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the servers where they are not."""
    reason = missing()
    for item in items:
        if reason and item.get_closest_marker("services"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    """Redis and PostgreSQL, with the environment of this process set to them."""
    with cluster() as made, pytest.MonkeyPatch.context() as patch:
        for name, value in {**made.environment(), **PATIENCE}.items():
            patch.setenv(name, value)
        made.prepare(made.data)
        yield made


@pytest.fixture(scope="module")
def toys(servers: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny steps, served on the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        notes = servers.folder / "notes"
        notes.mkdir()
        patch.setenv(toy.NOTES_VARIABLE, str(notes))
        with served(servers.data, toy.MODULE, tmp_path_factory.mktemp("s") / "code") as serving:
            yield serving


@pytest.fixture(autouse=True)
def no_workers_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test has its own workers, and leaves no servers down."""
    yield
    if "servers" in request.fixturenames:
        request.getfixturevalue("servers").tidy_up()


def go(run_id: str) -> None:
    """Let the waiting steps of a run come to their end."""
    (toy.notes() / f"{run_id}-go").touch()


def own_folder(servers: Cluster, name: str) -> Path:
    """An empty folder for one worker."""
    folder = servers.folder / "roots" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""Links under the folder of Dagster's instance: a data root may have been sent by somebody."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ringrift_pipeline.orchestration.instance import open_instance, own_instance, prepare_home
from ringrift_pipeline.orchestration.places import home_folder, services_folder
from ringrift_pipeline.orchestration.presence import announced, present
from ringrift_pipeline.orchestration.services import Service, ServiceError
from ringrift_pipeline.store import OutsideError

EARLIER = "run_queue: {dequeue_interval_seconds: 1}\n"  # which a daemon would write anew


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder outside of the data root."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "keys").write_text("secret")
    (folder / "dagster.yaml").write_text(EARLIER)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*") if path.is_file()}


OPEN: list[Callable[[Path], AbstractContextManager[object]]] = [open_instance, own_instance]


@pytest.mark.parametrize("opened", OPEN)
@pytest.mark.parametrize(
    "what", ["", "services", "values", "alerts", "logs", "progress", "history", "alerts/waiting"]
)
def test_a_folder_that_lies_elsewhere_is_refused(
    data: Path,
    mine: Path,
    what: str,
    opened: Callable[[Path], AbstractContextManager[object]],
) -> None:
    link = home_folder(data) / what
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    before = contents(mine)
    with pytest.raises(OutsideError, match=f"{link} leads to"), opened(data):
        pass
    with announced("loop", data):
        pass
    assert contents(mine) == before and sorted(mine.iterdir()) == [
        mine / "dagster.yaml",
        mine / "keys",
    ]


def test_the_data_root_itself_and_the_file_may_lie_elsewhere(data: Path, mine: Path) -> None:
    prepare_home(mine / "root")
    (mine / "root" / "dagster" / "dagster.yaml").unlink()
    (mine / "root" / "dagster" / "dagster.yaml").symlink_to(mine / "dagster.yaml")
    (mine / "root" / "elsewhere").mkdir()
    (mine / "root" / "dagster" / "values").symlink_to(mine / "root" / "elsewhere")
    data.symlink_to(mine / "root")
    with open_instance(data), announced("loop", data):
        assert [one.kind for one in present(data)] == ["loop"]
    assert (mine / "dagster.yaml").read_text() == EARLIER


def test_who_is_up_is_not_said_through_a_link(data: Path, mine: Path) -> None:
    services_folder(data).mkdir(parents=True)
    (services_folder(data) / "loop.json").symlink_to(mine / "keys")
    with announced("loop", data):
        assert present(data) == []
    assert (mine / "keys").read_text() == "secret"


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_log_is_a_plain_file(data: Path, mine: Path, kind: str) -> None:
    services_folder(data).mkdir(parents=True)
    log = services_folder(data) / "nonsense.log"
    if kind == "pipe":
        os.mkfifo(log)
    elif kind == "folder":
        log.mkdir()
    else:
        log.symlink_to(mine / ("keys" if kind == "link" else "new"))
    with pytest.raises(ServiceError, match="nonsense.log is a link, a pipe or a folder"):
        Service(data, "nonsense")
    assert (mine / "keys").read_text() == "secret" and not (mine / "new").exists()

"""Logs that are bounded: those of the services, and what sensors say again and again."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterInstance, SensorEvaluationContext
from dagster._core.execution.build_resources import wrap_resources_for_execution

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import failure_sensor, names, sensor, services, stalled_sensor
from ringrift_pipeline.orchestration.backend import Backend
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.notify import NotifyError
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.orchestration.places import home_folder, services_folder
from ringrift_pipeline.orchestration.services import Service, ServiceError, _cut
from ringrift_pipeline.store import BucketError, Store
from ringrift_pipeline.store.atomic import TEMPORARY
from tests.waiting import until

from .hooks import an_alert
from .landing import PLAN, Land

CONFIG = "square8_2p"
SMALL = 1000  # bytes of a log in these tests

# --- services -----------------------------------------------------------------------------------


@pytest.fixture
def log(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a log, which has not begun."""
    monkeypatch.setattr(services, "LARGEST_LOG", SMALL)
    services_folder(data).mkdir(parents=True)
    return services_folder(data) / "nonsense.log"


@pytest.fixture
def service(data: Path, log: Path) -> Iterator[Service]:
    """One that does not end by itself, and says nothing."""

    class Quiet(Service):
        def _start(self) -> subprocess.Popen[bytes]:
            self._command = ["sleep", "600"]
            return super()._start()

    made = Quiet(data, "nonsense")
    yield made
    made.kill()
    made.wait()


def old(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


def test_a_log_is_cut_under_a_process_that_goes_on_writing_to_it(log: Path) -> None:
    old(log).write_text("of the time before")
    with (
        services._appended(log) as output,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output) as writer,
    ):
        assert writer.stdin is not None

        def write(text: str) -> None:
            before = log.stat().st_size
            os.write(writer.stdin.fileno(), text.encode())  # type: ignore[union-attr]
            while log.stat().st_size < before + len(text):
                assert writer.poll() is None

        write("a" * SMALL)
        _cut(log)
        assert log.stat().st_size == SMALL  # it may have as much
        write("b" * 10)
        _cut(log)
        assert log.read_text() == "" and old(log).read_text() == "a" * (SMALL - 10) + "b" * 10
        write("c")
        assert log.read_text() == "c"
        writer.stdin.close()


def test_a_service_starts_with_a_short_log(log: Path, data: Path) -> None:
    log.write_text("a" * 3 * SMALL + "b" * SMALL)
    service = Service(data, "nonsense")
    assert old(log).read_text() == "b" * SMALL
    until(lambda: service.has_ended, "it has ended", 120)
    assert "no service is called 'nonsense'" in service.last_lines()[-1]


def test_the_log_of_a_service_that_goes_on_for_months_is_cut(service: Service, log: Path) -> None:
    for sign in "ab":
        log.write_text(sign * 2 * SMALL)
        service.check()
        assert log.read_text() == "" and old(log).read_text() == sign * SMALL
    assert service.last_lines() == []
    service.note("c")
    assert service.last_lines() == ["c"]


def test_those_of_the_daemon_and_the_code_server_are_cut(
    service: Service, log: Path, tmp_path: Path
) -> None:
    backend = Backend.__new__(Backend)
    backend.services = [service, service]
    backend.socket = backend._file = tmp_path
    backend._steps = SimpleNamespace(look=lambda *_: [])  # type: ignore[assignment]
    backend._turned_back = lambda: False  # type: ignore[assignment]
    backend._silences = (SimpleNamespace(too_long=False, seconds=0.0),) * 2  # type: ignore[assignment]
    log.write_text("a" * 2 * SMALL)
    backend.check()
    assert log.read_text() == "" and old(log).read_text() == "a" * SMALL


def test_a_log_that_cannot_be_cut_stays_and_is_not_tried_at_every_look(
    service: Service, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(log).mkdir()
    log.write_text("a" * 2 * SMALL)
    service.check()
    assert len(log.read_text()) == 2 * SMALL
    assert {*log.parent.iterdir()} == {log, old(log)}
    monkeypatch.setattr(services, "_cut", lambda _: pytest.fail("again"))
    service.check()


@pytest.mark.parametrize("linked", ["log", "the one before"])
def test_nothing_is_cut_or_kept_through_a_link(log: Path, data: Path, linked: str) -> None:
    mine = data.parent / "mine"
    mine.write_text("m" * 2 * SMALL)
    (log if linked == "log" else old(log)).symlink_to(mine)
    if linked == "log":
        _cut(log)
        with pytest.raises(ServiceError, match="is a link"):
            Service(data, "nonsense")
    else:
        log.write_text("a" * 2 * SMALL)
        _cut(log)
        assert not old(log).is_symlink() and old(log).read_text() == "a" * SMALL
    assert mine.read_text() == "m" * 2 * SMALL


# --- sensors ------------------------------------------------------------------------------------


@pytest.fixture
def instance(data: Path) -> Iterator[DagsterInstance]:
    """One that keeps what is logged in files."""
    with open_instance(data) as made:
        yield made


class Ticks:
    """Ticks of a sensor, each of which may make a file in which its log is kept."""

    def __init__(self, instance: DagsterInstance, data: Path, name: str) -> None:
        self.instance, self.name, self.cursor = instance, name, None
        self._home = home_folder(data)
        self._count = 0
        self.down = False

    def notify(self, alert: Any) -> None:
        """As a notifier."""
        if self.down:
            raise NotifyError("it is down")

    def files(self) -> set[Path]:
        return {path for path in self._home.rglob("*.err") if path.parent.name == self.name}

    def __call__(self) -> tuple[Any, str]:
        """The result of one, and what was logged in it."""
        before = self.files()
        repository = defs.get_repository_def()
        self._count += 1
        with SensorEvaluationContext(
            self.instance.get_ref(),  # without which nothing is kept
            instance=self.instance,
            cursor=self.cursor,
            log_key=[repository.name, self.name, str(self._count)],
            repository_def=repository,
            repository_name=repository.name,
            sensor_name=self.name,
            resources=wrap_resources_for_execution({"notifier": self}),
        ) as context:
            result = repository.get_sensor_def(self.name).evaluate_tick(context)
        self.cursor = result.cursor
        return result, "".join(path.read_text() for path in self.files() - before)


@pytest.fixture
def ticks(instance: DagsterInstance, data: Path) -> Callable[[str], Ticks]:
    return lambda name: Ticks(instance, data, name)


SENSORS = (names.SENSOR, names.FAILURE_SENSOR, names.STALLED_SENSOR)


@pytest.mark.parametrize("name", SENSORS)
def test_a_tick_with_nothing_to_say_makes_no_file(name: str, ticks: Callable[[str], Ticks]) -> None:
    tick = ticks(name)
    for _ in range(2):
        tick()
    assert tick.files() == set()


def test_a_paused_config_is_logged_once_and_said_in_every_tick(
    ticks: Callable[[str], Ticks], store: Store, land: Land
) -> None:
    tick = ticks(names.SENSOR)
    land(CONFIG, 0)
    store.set_switches(CONFIG, loop=False)
    said = [tick()[0].skip_message, tick()[0].skip_message, tick()[0].skip_message]
    assert said[1] == said[2] and "is paused" in said[1]
    assert len(tick.files()) == 1
    land("hex8_2p", 0)  # another config's news
    result, logged = tick()
    assert "hex8_2p generation 0000: promoted" in logged and CONFIG not in logged
    assert len(tick.files()) == 2
    store.set_switches(CONFIG, loop=True)
    assert f"{CONFIG} generation 0000: promoted" in tick()[1]


@pytest.mark.parametrize("varies", [None, BucketError, PermissionError])
def test_a_config_at_fault_is_logged_once_and_again_when_something_else_is_wrong(
    ticks: Callable[[str], Ticks], monkeypatch: pytest.MonkeyPatch, varies: type[Exception] | None
) -> None:
    count = 0

    def look(_: object, __: object, config: str, ___: object) -> None:
        nonlocal count
        count += 1
        if config == CONFIG and wrong:
            if varies is BucketError:
                raise BucketError(wrong, "to list", f"not answered for {count} s", "wait")
            if varies is PermissionError:
                raise PermissionError(errno.EACCES, "no", f"{wrong}/{TEMPORARY}7-x-{count:x}")
            raise ValueError(wrong)

    monkeypatch.setattr(sensor, "_look", look)
    tick = ticks(names.SENSOR)
    wrong = "s3://games"
    logged = tick()[1]
    assert "Traceback" in logged and "its loop waits" in logged
    for _ in range(3):
        result, logged = tick()
        assert logged == "" and "s3://games" in result.skip_message
    wrong = "s3://others"
    assert "Traceback" in tick()[1] and tick()[1] == ""
    wrong = ""
    assert tick()[1] == ""
    wrong = "s3://others"
    assert "Traceback" in tick()[1]
    assert len(tick.files()) == 3


@pytest.mark.parametrize("name", SENSORS[1:])
def test_a_web_hook_that_is_down_is_logged_once(
    name: str, ticks: Callable[[str], Ticks], store: Store
) -> None:
    tick = ticks(name)
    tick.down = True
    Outbox(store).put(an_alert())
    assert "not told, kept: it is down" in tick()[1]
    assert tick()[1] == "" == tick()[1]
    tick.down = False
    assert "told: " in tick()[1]
    assert len(tick.files()) == 2


def test_a_config_that_cannot_be_watched_is_logged_once(
    ticks: Callable[[str], Ticks], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise OSError("no answer")

    store.write_plan(CONFIG, 0, PLAN)
    monkeypatch.setattr(stalled_sensor, "_look", refusing)
    tick = ticks(names.STALLED_SENSOR)
    assert "cannot be watched, OSError: no answer" in tick()[1]
    assert tick()[1] == ""


def test_a_failure_after_which_nothing_can_be_offered_is_logged_once(
    ticks: Callable[[str], Ticks], store: Store, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise OSError("no answer")

    land(CONFIG, 0, passed=False, tags={"dagster/max_retries": "0"})
    monkeypatch.setattr(failure_sensor, "add_partitions", refusing)
    monkeypatch.setattr(failure_sensor, "config_in", lambda _: CONFIG)
    tick = ticks(names.FAILURE_SENSOR)
    assert "no answer" in tick()[1]
    assert tick()[1] == ""

"""``ringrift status``: what runs, what is next, how strong each config is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ringrift_pipeline.commands.console import clock, interval, output, plain, print_json
from ringrift_pipeline.commands.options import Common
from ringrift_pipeline.commands.tables import fitting
from ringrift_pipeline.orchestration.places import home_folder

if TYPE_CHECKING:
    from ringrift_pipeline.orchestration.status import Rated, RunState, Status, Strength

_ALERTS = {"waiting": "not told yet, put", "told": "told", "refused": "refused by the web hook"}


def status(common: Common) -> None:
    """Say what runs and how far it is, what is next, how strong each config is, and what it takes.

    Reads what is under --data, of all configs, and starts nothing.
    """
    from ringrift_pipeline.orchestration.status import status_of

    found = status_of(common.root)
    if common.as_json:
        print_json(found.to_dict())
        return
    for line in lines(found):
        # progress, reasons and names are of whoever wrote what lies under the data root
        output.print(plain(line), markup=False, soft_wrap=True)
    if found.configs:
        for table in strengths(found.configs):
            output.print(table)


def lines(found: Status) -> Iterator[str]:
    """Everything but the table."""
    now = time.time()
    if not Path(found.data).exists():
        yield f"{found.data}: there is no such folder (yet: ringrift loop makes it)"
        return
    history = f"{size(found.history_bytes)} of them Dagster's history"
    yield f"{found.data}: {size(found.bytes)} used, {history}, {size(found.free_bytes)} free"
    up = {service.kind: service for service in found.services}
    daemon, web, play, loop = (up.get(kind) for kind in ("daemon", "webserver", "play", "loop"))
    yield "daemon: " + (f"up, process {daemon.pid}" if daemon else "down")
    yield "web server: " + (f"up at http://{web.host}:{web.port}" if web else "down")
    if play:
        yield f"recorded games: up at http://{play.host}:{play.port}"
    if loop:
        yield f"ringrift loop: up, process {loop.pid}"
    for config, generation in found.by_hand:
        yield f"runs: {config} generation {generation:04d}, begun on the command line"
    for run in found.running:
        yield f"runs: {described(run)}, {run.status} for {clock(max(0.0, now - run.since))}"
        for step in run.steps:
            took = clock(max(0.0, now - step.started))
            counted = f"{step.done}/{step.total}" if step.total else ""
            if counted in step.message:
                counted = ""  # it says so itself
            yield "      " + ", ".join(
                part for part in (f"{step.step} for {took}", counted, step.message) if part
            )
    if found.running and daemon is None:
        yield "      with the daemon gone nobody may be working on it: ringrift loop or ui sees to that"
    if found.sensor_off:
        from ringrift_pipeline.orchestration.names import SENSOR

        yield f"turned off: the sensor {SENSOR}; no generation follows another until it is turned on"
        yield "      in the UI (ringrift ui), under Automation"
    for one in found.configs:
        if one.paused:
            what = ", ".join(one.paused)
            yield f"paused: {one.config}'s {what}; ringrift resume --config {one.config} ends it"
        if one.stopped:
            where = f"{one.config} generation {one.stopped.generation:04d}"
            yield f"stopped: {where}, {'; '.join(one.stopped.reasons)}"
            yield f"      once that is put right: ringrift loop --config {one.config}"
    for run in found.failed:
        began = datetime.fromtimestamp(run.since, UTC).isoformat()
        yield f"failed: {described(run)}, begun {ago(began)}; its page in the UI says why"
    for run in found.cancelled:
        at = datetime.fromtimestamp(run.since, UTC).isoformat()
        yield f"cancelled: {described(run)}, {ago(at)}; nothing starts it again by itself"
        yield f"      ringrift loop --config {run.config} goes on, or Re-execute on its page in the UI"
    if found.alerts:
        yield f"alerts: {found.alerts} not told to anybody yet; the daemon passes them on"
    if found.recent_alerts:
        yield f"alerts of the last day, whole in {home_folder(Path(found.data)) / 'alerts'}:"
    for alert in found.recent_alerts:
        since = datetime.fromtimestamp(alert.since, UTC).isoformat()
        yield f"      {_ALERTS[alert.state]} {ago(since)}: {short(alert.title)}"
    for run in found.waiting:
        yield f"waits: {described(run)}"
    for following in found.following:
        yield f"next: {following.what}, {following.when}"
    busy = found.running or found.waiting or found.following or found.by_hand or loop
    if not (
        busy or found.cancelled or found.sensor_off or any(one.stopped for one in found.configs)
    ):
        yield "nothing runs and nothing waits: ringrift loop plays a generation"


def described(run: RunState) -> str:
    """``square8_2p generation 0003 (run 1a2b3c4d)``; the job's name where it is no generation's."""
    whose = run.config or ""
    what = f"generation {run.generation:04d}" if run.generation is not None else run.job
    return f"{whose} {what} (run {run.run_id[:8]})".strip()


def short(text: str, most: int = 160) -> str:
    """One line of text that anybody may have chosen, and not much of it."""
    shown = plain(" ".join(text.split()))
    return shown if len(shown) <= most else f"{shown[:most]} …"


def strengths(configs: list[Strength]) -> list[Table]:
    """One row a config."""
    return fitting(
        "how strong each config is: rating (interval), heuristic = 1200",
        ["config", "games", "newest", "evaluated", "rating", "champion", "its rating", "disk"],
        [
            [
                one.config,
                f"{one.games:,}",
                f"{one.newest:04d}",
                f"{one.evaluated.generation:04d}, {ago(one.evaluated.at)}"
                if one.evaluated
                else "–",
                rating(one.evaluated),
                f"{one.champion.generation:04d}" if one.champion else "–",
                rating(one.champion),
                size(one.bytes),
            ]
            for one in configs
        ],
    )


def rating(one: Rated | None) -> str:
    """``1236 (1166 to 1305)``."""
    if one is None:
        return "–"
    return interval(one.rating, one.rating_low, one.rating_high, ".0f")


def ago(when: str) -> str:
    """How long ago an ISO 8601 time was."""
    passed = (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()
    days, rest = divmod(max(0.0, passed), 86_400)
    return f"{int(days)} d ago" if days else f"{clock(rest)} ago"


def size(count: int) -> str:
    """123456789 -> ``123 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"

"""A history of many generations: what the pages, the sensors and the command line take with it.

    python benchmarks/many_generations.py [--quick] [--json] [--generations N ...] [--config CONFIG]
        [--folder DIR]

One config's history grows to each of ``--generations`` and is measured there. Nothing is played or
trained: every generation's artefacts are landed by the store, small in content but with the names,
numbers, reports, games and pictures that the rooms give them; its run, materializations and checks
are events that Dagster's own instance stores, with the metadata that the assets report. (While the
history is made, nothing waits for the disk, and one transaction takes in many events.)

Measured at each size, in seconds of processor time of whoever does the work (the wall time beside
it says how long it took on this machine, with all that it had to do), and how many times the smallest
size's:

- what the browser asks of the web server for a page: the queries are taken from the web server's own
  pages, asked of it over HTTP three times; the median, and of the wall time all three;
- `status_of`, which is ``ringrift status``; a tick of every sensor, of ``evaluation_landed`` also
  with an evaluation to decide on; the plan and the rating list of the newest generation; what the
  owner of the data root does at its start; the survey of retention.

The reference is two seconds. Also claimed: bytes of the newest generation's events, and the longest
text or picture in them, against 50 kB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from long_history import ASSETS, History

CONFIG = "square8_2p"
GENERATIONS = (10, 1_000, 10_000)
QUICK_GENERATIONS = (5, 15)
LIMIT = 2.0  # seconds
MOST_BYTES = 50_000  # of a text or picture in the event log

Claim = dict[str, Any]


# --- the browser's queries ----------------------------------------------------------------------


def enclosed(text: str, start: int) -> str:
    """From ``start`` to the brace that closes the first one after it."""
    depth = 0
    for place in range(text.index("{", start), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start : place + 1]
    raise ValueError("a brace is never closed")


class Browser:
    """What the web server's pages ask of it."""

    def __init__(self, address: str) -> None:
        import dagster_webserver

        self._address = address
        pages = Path(dagster_webserver.__file__).parent / "webapp" / "build" / "_next" / "static"
        text = "".join(path.read_text("utf-8") for path in sorted(pages.rglob("*.js")))
        self._text = text
        self._fragments = {
            found[1]: found.start() for found in re.finditer(r"fragment (\w+) on \w+ ?\{", text)
        }

    def query(self, name: str) -> str:
        """A query with all fragments that it needs. Raises ValueError if there is none."""
        found = re.search(rf"query {name}\b[^{{]*", self._text)
        if found is None:
            raise ValueError(f"this version of the web server has no query {name}")
        parts = {"": enclosed(self._text, found.start())}
        left = [""]
        while left:
            for used in re.findall(r"\.\.\.\s*(\w+)", parts[left.pop()].replace("\\n", "\n")):
                if used != "on" and used not in parts:
                    parts[used] = enclosed(self._text, self._fragments[used])
                    left.append(used)
        return "\n".join(parts.values()).replace("\\n", "\n")

    def ask(self, name: str, **variables: Any) -> int:
        """Ask once; the bytes of the answer. Raises ValueError for an answer that is an error."""
        body = json.dumps({"query": self.query(name), "variables": variables}).encode()
        wish = urllib.request.Request(
            f"{self._address}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(wish, timeout=300.0) as answer:
            told = answer.read()
        errors = json.loads(told).get("errors")
        if errors:
            raise ValueError(f"{name}: {errors[0]['message']}")
        return len(told)


def pages(history: History) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """What is asked for each page: queries with their variables."""
    from ringrift_pipeline.orchestration import names

    def key(name: str) -> dict[str, Any]:
        return {"path": [history.config, name]}

    evaluation, newest = key("evaluation"), names.generation_key(history.size - 1)
    every = [key(name) for name in (*ASSETS, names.CHAMPION)]
    location = {
        "repositoryName": "__repository__",
        "repositoryLocationName": names.MODULE,
        "sensorName": names.SENSOR,
    }
    kinds = ["MATERIALIZATION", "OBSERVATION"]
    return {
        "runs": [("RunsFeedRootQuery", {"limit": 30, "view": "ROOTS", "filter": {}})],
        "a run": [("RunRootQuery", {"runId": history.run.run_id})],
        "lineage of the config": [
            ("AssetGraphLiveQuery", {"assetKeys": every}),
            ("AssetStaleStatusDataQuery", {"assetKeys": every}),
            ("AssetHealthQuery", {"assetKeys": every}),
        ],
        "an asset, overview": [
            ("AssetViewDefinitionQuery", {"assetKey": evaluation}),
            ("AssetOverviewMetadataEventsQuery", {"assetKey": evaluation}),
            ("LatestAssetPartitionsQuery", {"assetKey": evaluation, "limit": 100}),
        ],
        "an asset, events and plots": [
            (
                "RecentAssetEventsQuery",
                {"assetKey": key("checkpoint"), "limit": 100, "eventTypeSelectors": kinds},
            )
        ],
        "an asset, partitions": [
            ("PartitionHealthQuery", {"assetKey": evaluation}),
            ("AssetPartitionDetailQuery", {"assetKey": evaluation, "partitionKey": newest}),
        ],
        "an asset, checks": [
            ("AssetChecksQuery", {"assetKey": evaluation}),
            (
                "AssetCheckDetailsQuery",
                {"assetKey": evaluation, "checkName": "gate_sound", "limit": 25},
            ),
        ],
        "a sensor": [("SensorRootQuery", {"sensorSelector": location})],
    }


# --- measuring ----------------------------------------------------------------------------------


@dataclass
class Timed:
    """Seconds of processor and wall of each of some times."""

    cpu: list[float]
    wall: list[float]


def own() -> float:
    """Processor seconds of this process."""
    return time.process_time()


def of_process(pid: int) -> float:
    """Processor seconds of another process, children that it has waited for included; Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], object], times: int = 1, clock: Callable[[], float] = own) -> Timed:
    """Do something some times."""
    found = Timed([], [])
    for _ in range(times):
        began, spent = time.perf_counter(), clock()
        work()
        found.cpu.append(clock() - spent)
        found.wall.append(time.perf_counter() - began)
    return found


def of_pages(history: History) -> Iterator[tuple[str, Timed, dict[str, Any]]]:
    """Seconds of each page, from a real web server."""
    from ringrift_pipeline.orchestration import services

    services.START_PATIENCE = 1200.0  # however busy the machine is
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = services.start_webserver(history.root, "127.0.0.1", port)
    try:
        browser = Browser(f"http://127.0.0.1:{port}")
        browser.ask("RunsFeedRootQuery", limit=1, view="ROOTS", filter={})  # it has loaded all
        for page, queries in pages(history).items():
            each: dict[str, float] = {}
            size = 0

            def ask(queries: Any = queries, each: Any = each) -> None:
                nonlocal size
                size = 0
                for name, variables in queries:
                    began = time.perf_counter()
                    size += browser.ask(name, **variables)
                    each[name] = round(time.perf_counter() - began, 3)

            took = timed(ask, 3, lambda: of_process(server.pid))
            yield f"page: {page}", took, {"bytes": size, "queries": each}
    finally:
        server.stop()


def of_sensors(history: History) -> Iterator[tuple[str, Timed, dict[str, Any]]]:
    """Seconds of a tick of each sensor."""
    from dagster import build_sensor_context

    from ringrift_pipeline.definitions import defs
    from ringrift_pipeline.orchestration import names
    from ringrift_pipeline.orchestration.instance import open_instance
    from ringrift_pipeline.orchestration.notify import LogNotifier

    repository = defs.get_repository_def()
    (landed,) = history.evaluated.values()
    cursors = {
        names.STALLED_SENSOR: None,
        names.FAILURE_SENSOR: "0",
        names.SENSOR: json.dumps({history.config: landed}),
    }
    ticks = [(name, name, cursor) for name, cursor in cursors.items()]
    before = json.dumps({history.config: landed - 1})
    ticks.append((f"{names.SENSOR}, an evaluation to decide on", names.SENSOR, before))
    with open_instance(history.root) as instance:
        for what, name, cursor in ticks:
            told: list[Any] = []

            def tick(name: str = name, cursor: Any = cursor, told: Any = told) -> None:
                with build_sensor_context(
                    instance=instance,
                    cursor=cursor,
                    repository_def=repository,
                    resources={"notifier": LogNotifier()},
                ) as context:
                    told.append(repository.get_sensor_def(name).evaluate_tick(context))

            seconds = timed(tick)
            yield f"tick: {what}", seconds, {"requests": len(told[0].run_requests or ())}


def of_store(history: History) -> Iterator[tuple[str, Timed, dict[str, Any]]]:
    """Seconds of what reads the data root."""
    from ringrift_pipeline.evaluation.rating_list import rate_all
    from ringrift_pipeline.orchestration.instance import own_instance
    from ringrift_pipeline.orchestration.status import status_of
    from ringrift_pipeline.selfplay import plan_generation
    from ringrift_pipeline.store.retention import survey

    store, config, newest = history.store, history.config, history.size - 1
    yield "status", timed(lambda: status_of(history.root)), {}
    store.remove(config, newest, "rating_list")  # one that is there is handed back
    yield "rating list", timed(lambda: rate_all(store, config, newest)), {}

    def owned() -> None:
        with own_instance(history.root):
            pass

    yield "start of a loop: tidying up", timed(owned), {}
    found: list[Any] = []
    yield "survey of retention", timed(lambda: found.append(survey(store))), {}
    plan: list[Any] = []

    def planned() -> None:
        plan.append(plan_generation(store, config, newest + 1, history.settings))

    took = timed(planned)
    # the history goes on with plans of its own
    (store.root / config / "generations" / f"{newest + 1:04d}" / "plan.json").unlink()
    yield "plan of the next generation", took, {"window_shards": len(plan[0].window)}


def of_events(history: History) -> Iterator[Claim]:
    """Bytes of a generation in the event log, and of the longest text in it."""
    from dagster import DagsterEventType

    from ringrift_pipeline.orchestration.instance import open_instance
    from ringrift_pipeline.orchestration.places import home_folder
    from ringrift_pipeline.orchestration.status import disk_usage

    longest = 0
    with open_instance(history.root) as instance:
        for entry in instance.all_logs(
            history.run.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION
        ):
            told = entry.dagster_event.event_specific_data.materialization.metadata
            longest = max([longest, *(len(str(one.value)) for one in told.values())])
    name = f"many generations: {history.size:,}, longest text or picture of an event"
    yield claim(name, longest, "characters", MOST_BYTES)
    each = disk_usage(home_folder(history.root)) / history.size / 1e3
    yield claim(f"many generations: {history.size:,}, Dagster's history a generation", each, "kB")


def claim(name: str, value: float, unit: str, reference: float | None = None, **more: Any) -> Claim:
    """One claim; a ratio of 1 is as much as is allowed."""
    ratio = round(reference / max(value, 1e-6), 3) if reference else None
    told = {"claim": name, "value": round(value, 4), "unit": unit, "reference": reference}
    return told | {"ratio": ratio, "target": 1.0 if reference else None} | more


def claims(folder: Path, config: str, sizes: list[int]) -> Iterator[Claim]:
    """All claims, size by size."""
    history = History(folder / "data", config)
    first: dict[str, float] = {}
    for size in sorted(sizes):
        made = size - history.size
        making = timed(lambda size=size: history.grow(size))  # type: ignore[misc]
        name = f"many generations: {size:,}, making a generation"
        load = [round(one, 2) for one in os.getloadavg()]
        about = {"wall": round(making.wall[0], 1), "load_average": load, "cores": os.cpu_count()}
        yield claim(name, making.cpu[0] / made, "processor s", made=made, **about)
        for part in (of_pages, of_store, of_sensors):
            for what, took, more in part(history):
                value = statistics.median(took.cpu)
                start = first.setdefault(what, max(value, 0.01))
                yield claim(
                    f"many generations: {size:,}, {what}",
                    value,
                    "processor s",
                    LIMIT,
                    wall=[round(one, 3) for one in took.wall],
                    times_the_smallest=round(value / start, 2),
                    **more,
                )
        yield from of_events(history)
        history.decided()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few generations, which say little")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    parser.add_argument("--generations", type=int, nargs="+", default=list(GENERATIONS))
    parser.add_argument("--config", default=CONFIG, help="board and player count")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    arguments = parser.parse_args()
    sizes = list(QUICK_GENERATIONS) if arguments.quick else arguments.generations
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["RINGRIFT_DATA"] = str(Path(folder) / "data")
        os.environ.pop("DAGSTER_HOME", None)
        for each in claims(Path(folder), arguments.config, sizes):
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()

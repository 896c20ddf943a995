"""What a step costs on Celery's workers, whatever it does: with one worker, two, four, eight.

    python benchmarks/workers.py [--quick] [--json] [--workers N ...] [--seconds S] [--steps K]

Needs ``redis-server``, ``postgresql`` and the extra ``celery``; servers and workers are started here, on
this machine. K steps a worker that wait for S seconds each, with all that a real step has around it, go
through the queue. They need no processor, so that eight workers are not limited by two cores; what is left
is the cost of handing them out, of their processes and of what they tell.

- **Beside**: seconds of a worker that a step takes beside its own; against one worker, 1 means that it
  does not grow with their number. The processes of all steps begin on this machine's cores.
- **Run**: processor time of the run's process, a step, and a second of the run; its memory; what it takes to
  look once more at all of its events, a thousand at most. Twice a second it does so with those of the last ten
  seconds.
- **Look after**: processor time of the run's process for a look after one step, as every two seconds after
  each: Dagster says what is known of all of the run's outputs, Redis is asked; with up to ten thousand steps.
- **PostgreSQL**: rows and bytes of events, transactions, and connections that were begun, a step.
- **Redis**: commands a step, and a second of the run.
- **Memory** of a worker, idle, and of the run, as proportional set size (Linux only).

They are the constants of ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from distributed import known, told  # noqa: E402
from process_tree import PSS, family, measured, memory_of  # noqa: E402

from tests.distributed.cluster import Cluster, cluster  # noqa: E402

MODULE = "benchmarks.waiting_steps"
WORKERS = (1, 2, 4, 8)
STEPS = (100, 1_000, 10_000)  # of one run that wait
LOOKS = 20
TICKS = os.sysconf("SC_CLK_TCK")

Claim = dict[str, Any]


class Spent(threading.Thread):
    """Processor time of the runs' processes below a code server, in seconds, as last seen, and the most
    memory that one of them took, in MB, by a look every two seconds.
    """

    def __init__(self, server: int) -> None:
        super().__init__(daemon=True)
        self._server, self._over = server, threading.Event()
        self.seconds: dict[int, float] = {}
        self.memory = 0.0

    def run(self) -> None:
        looks = 0
        while not self._over.wait(0.2):
            looks += 1
            for pid in family(self._server):
                with contextlib.suppress(OSError, StopIteration):
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    if pid != self._server:
                        self.seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
                        if looks % 10 == 0:
                            self.memory = max(self.memory, measured(pid)[PSS])

    def stop(self) -> float:
        self._over.set()
        self.join()
        return sum(self.seconds.values())


def asked(servers: Cluster) -> dict[str, float]:
    """What PostgreSQL and Redis have done until now."""
    import redis

    client = redis.Redis("127.0.0.1", servers.redis.port, password=servers.redis.password)
    done = {"commands": float(client.info("stats")["total_commands_processed"])}
    with contextlib.closing(servers.postgres.connect("dagster")) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for name, query in {
            "transactions": "SELECT xact_commit FROM pg_stat_database WHERE datname = 'dagster'",
            "connections": "SELECT sessions FROM pg_stat_database WHERE datname = 'dagster'",
            "rows": "SELECT count(*) FROM event_logs",
            "bytes": "SELECT pg_total_relation_size('event_logs')",
        }.items():
            cursor.execute(query)
            done[name] = float(cursor.fetchone()[0])
    return done


def look_back(instance: Any, run: str) -> float:
    """Processor time of the executor's look at a run's last events, where none of them is new."""
    from dagster._core.execution.retries import RetryMode

    from ringrift_pipeline.orchestration.celery_executor import CeleryStepExecutor
    from ringrift_pipeline.orchestration.celery_settings import CelerySettings
    from ringrift_pipeline.orchestration.celery_steps import CelerySteps

    steps = CelerySteps(CelerySettings.from_environment())
    executor, seen = CeleryStepExecutor(steps, RetryMode.DISABLED), set[int]()
    while executor._pop_events(instance, run, seen):
        pass
    began = time.thread_time()
    for _ in range(LOOKS):
        executor._pop_events(instance, run, seen)
    return (time.thread_time() - began) / LOOKS


def looked_after(count: int) -> float:
    """Processor time of the run's process for a look after one step of ``count`` that all wait: Dagster says
    what is known of the run, `CelerySteps` asks Redis.
    """
    from dagster._core.definitions.reconstruct import ReconstructableJob
    from dagster._core.execution.plan.active import ActiveExecution
    from dagster._core.execution.plan.outputs import StepOutputHandle
    from dagster._core.execution.plan.state import KnownExecutionState
    from dagster._core.execution.retries import RetryMode, RetryState

    from ringrift_pipeline.orchestration.celery_executor import CeleryStepExecutor
    from ringrift_pipeline.orchestration.celery_settings import CelerySettings
    from ringrift_pipeline.orchestration.celery_steps import SENT, CelerySteps

    steps = CelerySteps(CelerySettings.from_environment())
    executor = CeleryStepExecutor(steps, RetryMode.DISABLED)
    keys = [f"{index:05d}" for index in range(count)]
    state: Any = SimpleNamespace(
        _retry_state=RetryState(),
        _completed_dynamic_outputs={"plan": {"result": keys}},
        _step_outputs={StepOutputHandle("plan", "result", key) for key in keys},
        _plan=SimpleNamespace(known_state=KnownExecutionState()),
    )
    state.get_known_state = lambda: ActiveExecution.get_known_state(state)
    plan = SimpleNamespace(
        plan_data=SimpleNamespace(instance=SimpleNamespace(get_ref=lambda: None)),
        reconstructable_job=ReconstructableJob.for_module(MODULE, "waiting"),
        dagster_run=SimpleNamespace(run_id="looked-after"),
    )
    step = SimpleNamespace(key=f"wait[{keys[0]}]", tags={})

    def asked() -> Any:
        return executor._get_step_handler_context(plan, [step], state)

    _, handed = steps._of(asked())
    steps._app.backend.store_result(handed.task_id, None, SENT)

    def look() -> None:
        told = steps.check_step_health(asked())
        assert told.is_healthy, told.unhealthy_reason

    look()  # asks the queues as well, as every five seconds
    began = time.thread_time()
    for _ in range(LOOKS):
        look()
    return (time.thread_time() - began) / LOOKS


def figures(count: int, steps: int, seconds: float) -> dict[str, float]:
    """One run of ``steps`` steps a worker."""
    from dagster import DagsterEventType, DagsterRunStatus

    from tests.orchestration.served import served

    with cluster(separate=False) as servers, known(servers), tempfile.TemporaryDirectory() as short:
        data = servers.prepare(servers.data)
        os.environ["RINGRIFT_DATA"] = str(data)
        for number in range(count):
            servers.worker(f"worker{number}", "selfplay", servers.root(f"worker{number}"))
        servers.ready()
        idle = [memory_of(worker.process.pid) for worker in servers.workers]
        with served(data, MODULE, Path(short) / "code.sock") as serving:
            config = {"ops": {"plan": {"config": {"steps": count * steps}}}}
            config["ops"]["wait"] = {"config": {"seconds": seconds}}
            before = asked(servers)
            spent = Spent(serving.server.pid)
            spent.start()
            began = time.monotonic()
            run = serving.launch("waiting", config)
            assert serving.finished(run, 600.0) == DagsterRunStatus.SUCCESS, serving.errors(run)
            wall, processor = time.monotonic() - began, spent.stop()
            after = asked(servers)
            look = look_back(serving.instance, run)
            times = [
                entry.timestamp
                for entry in serving.instance.all_logs(
                    run, of_type={DagsterEventType.STEP_START, DagsterEventType.STEP_SUCCESS}
                )
                if str(entry.step_key).startswith("wait[")
            ]
    done = {name: after[name] - before[name] for name in after}
    total, span = count * steps, max(times) - min(times)
    return {
        "beside": (count * span - total * seconds) / total,
        "run": processor / total,
        "share": processor / wall,
        "run_memory": spent.memory,
        "look": 1000 * look,
        "rows": done["rows"] / total,
        "bytes": done["bytes"] / total,
        "transactions": done["transactions"] / total,
        "connections": done["connections"] / total,
        "commands": done["commands"] / total,
        "commands_per_second": done["commands"] / wall,
        "memory": max(idle),
        "steps_per_second": total / span,
    }


UNITS = {
    "beside": ("a step's seconds of a worker beside its own", "s"),
    "run": ("processor time of the run's process, a step", "s"),
    "share": ("processor time of the run's process, a second", "s"),
    "run_memory": ("memory of the run's process, most", "MB"),
    "look": ("processor time of a look at the newest events of the run, at most a thousand", "ms"),
    "rows": ("events of a step in PostgreSQL", "rows"),
    "bytes": ("the same in bytes, indices included", "bytes"),
    "transactions": ("transactions of PostgreSQL, a step", ""),
    "connections": ("connections to PostgreSQL that were begun, a step", ""),
    "commands": ("commands of Redis, a step", ""),
    "commands_per_second": ("commands of Redis, a second", "1/s"),
    "memory": ("memory of an idle worker, most", "MB"),
    "steps_per_second": ("steps a second", "1/s"),
}


def claims(counts: list[int], steps: int, seconds: float) -> Iterator[Claim]:
    """A look after a step; then all figures for each number of workers, against those for the first."""
    with cluster(separate=False) as servers, known(servers):
        looks = {count: looked_after(count) for count in STEPS}
    for count, look in looks.items():
        yield {
            "claim": f"workers: processor time of a look after a step, {count} that wait",
            "value": round(1000 * look, 4),
            "unit": "ms",
            "reference": None,
            "ratio": None,
            "target": None,
        }
    first: dict[str, float] = {}
    for count in counts:
        found = figures(count, steps, seconds)
        first = first or found
        for name, value in found.items():
            what, unit = UNITS[name]
            yield {
                "claim": f"workers: {what}, {count} of them, steps of {seconds:g} s",
                "value": round(value, 4),
                "unit": unit,
                "reference": round(first[name], 4),
                "ratio": round(value / first[name], 3) if first[name] else None,
                "target": None,
            }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS), metavar="N")
    parser.add_argument("--seconds", type=float, default=5.0, help="that a step waits (5)")
    parser.add_argument("--steps", type=int, default=8, help="a worker (8)")
    parser.add_argument("--quick", action="store_true", help="one worker and two, short steps")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # Dagster's queue writes to standard output
    counts, steps, seconds = arguments.workers, arguments.steps, arguments.seconds
    if arguments.quick:
        counts, steps, seconds = [1, 2], 2, 1.0
    told(claims(counts, steps, seconds))


if __name__ == "__main__":
    main()

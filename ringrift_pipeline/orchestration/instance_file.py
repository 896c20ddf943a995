"""``dagster.yaml``: what a new data root gets, and what becomes of an earlier version's."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ringrift_pipeline.orchestration.names import ORDER_TAG
from ringrift_pipeline.selfplay.workers import cores
from ringrift_pipeline.store import read_bounded

NAME = "dagster.yaml"
BEFORE = "dagster.yaml.before"  # where one that was brought up to date stays as it was

_COORDINATOR = {
    "module": "ringrift_pipeline.orchestration.run_order",
    "class": "GenerationsInOrder",
}
_ORDER = {"key": ORDER_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
_NOTE = f"""\
# Brought up to date by a later version: generations of one config follow each other (run_coordinator
# and tag_concurrency_limits). What it was: {BEFORE}
"""


LARGEST = 1 << 20  # bytes of such a file
_AGAIN = "move the file away: a new one is written"
MODULES_VARIABLE = "RINGRIFT_INSTANCE_MODULES"
_STORAGE = "dagster._core.storage"
TRUSTED = frozenset(
    f"{module}.{name}"
    for module, names in {
        _COORDINATOR["module"]: (_COORDINATOR["class"],),
        "ringrift_pipeline.orchestration.postgres": ("PatientPostgresStorage",),
        "dagster": ("DefaultRunLauncher",),
        "dagster._core.launcher": ("DefaultRunLauncher",),
        "dagster._core.run_coordinator": ("DefaultRunCoordinator", "QueuedRunCoordinator"),
        "dagster._core.scheduler": ("DagsterDaemonScheduler",),
        f"{_STORAGE}.root": ("LocalArtifactStorage",),
        f"{_STORAGE}.local_compute_log_manager": ("LocalComputeLogManager",),
        f"{_STORAGE}.noop_compute_log_manager": ("NoOpComputeLogManager",),
        f"{_STORAGE}.sqlite_storage": ("DagsterSqliteStorage",),
        f"{_STORAGE}.runs": ("SqliteRunStorage",),
        f"{_STORAGE}.event_log": (
            "ConsolidatedSqliteEventLogStorage",
            "SqliteEventLogStorage",
        ),
        f"{_STORAGE}.schedules": ("SqliteScheduleStorage",),
        "dagster_postgres": (
            "DagsterPostgresStorage",
            "PostgresEventLogStorage",
            "PostgresRunStorage",
            "PostgresScheduleStorage",
        ),
        "dagster_aws.s3": ("S3ComputeLogManager",),
        "dagster_aws.s3.compute_log_manager": ("S3ComputeLogManager",),
    }.items()
    for name in names
)
"""Classes that any file may name. Others of Dagster's start what their settings say (a container, the
commands of a kubeconfig), read files or import further classes.
"""
LOGGING = frozenset({"logging.Formatter", "logging.NullHandler", "logging.StreamHandler"})
"""What the logs may be made with: other handlers write to any file or send to any host."""
STREAMS = frozenset({"sys.stderr", "sys.stdout"})


class InstanceFileError(ValueError):
    """``dagster.yaml`` names code that is not known to do no harm."""


def refuse_foreign_code(text: str) -> None:
    """Dagster imports what its file names, and the file lies under the data root: a folder that
    somebody has sent must neither bring code along nor use Dagster's or Python's to run or write it.
    Whatever is not in `TRUSTED`, `LOGGING` or `STREAMS` (a run launcher, a log handler) is named in
    ``RINGRIFT_INSTANCE_MODULES``: packages, modules or classes, with commas between.

    Raises InstanceFileError, for a file that cannot be read as well: what Dagster would make of it is
    not known.
    """
    try:
        found = yaml.safe_load(text)
    except UNREADABLE as error:
        raise InstanceFileError(f"{NAME} is no YAML: {error}. Mend it, or {_AGAIN}") from None
    own = [name.strip() for name in os.environ.get(MODULES_VARIABLE, "").split(",") if name.strip()]
    for where, name, known in _imported(found):
        if name in known or any(name == one or name.startswith(f"{one}.") for one in own):
            continue
        raise InstanceFileError(
            f"{NAME}: {where} names {name!r}, which is not among what any such file may name, as it "
            f"could run, read, write or send anything. If the file is yours, set {MODULES_VARIABLE}="
            f"{name}; if not, {_AGAIN}"
        )


def check_instance_file(home: Path) -> None:
    """`refuse_foreign_code` of the file that an instance in the folder ``home`` would be made by; to be
    called by whoever is about to make one.

    Raises InstanceFileError; TooLargeError, OSError: the file cannot be read.
    """
    path = home / NAME
    if glob.escape(str(path)) != str(path):  # as a pattern, which may find another file
        raise InstanceFileError(
            f"{NAME}: Dagster finds none in {home}, for *, ? and [ are no part of a name to it: rename "
            "the folder"
        )
    try:
        found = read_bounded(path, LARGEST)
    except FileNotFoundError:
        return
    try:
        refuse_foreign_code(found.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InstanceFileError(f"{NAME} is no UTF-8 text: {error}. Mend it, or {_AGAIN}") from None


UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, AttributeError, TypeError)
"""What PyYAML raises for what is no YAML, or no date, number or key that there is."""


def _imported(content: Any) -> Iterator[tuple[str, str, frozenset[str]]]:
    """(path in the file, dotted name, which names are known) of everything that is imported."""
    left, seen = [("", content)], set()
    while left:
        where, value = left.pop()
        logs = where.split(".")[0] == "python_logs"
        if isinstance(value, dict | list):
            if (id(value), logs) in seen:  # an anchor, which may name itself
                continue
            seen.add((id(value), logs))
            if isinstance(value, dict) and isinstance(value.get("module"), str):
                module = re.sub(r"^dagster\.core\b", "dagster._core", value["module"])
                yield where or "module", f"{module}.{value.get('class')}", TRUSTED
            items = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{where}.{key}".lstrip("."), one) for key, one in items]
        elif logs and isinstance(value, str):
            key = where.rpartition(".")[2]
            if key == "class":
                yield where, value, LOGGING
            elif key == "()":  # which is called, whatever it is
                yield where, value, frozenset()
            elif "://" in value:
                yield where, value.removeprefix("ext://"), STREAMS


def instance_file() -> str:
    """The text of a new ``dagster.yaml``.

    A run uses every core by itself (shards side by side, training with all threads), so on a
    small machine runs follow each other: parallel runs times parallel steps must not be more
    than the cores. The pools keep steps of several runs together within them. Generations of one
    config follow each other on any machine: each learns from the one before.
    """
    count = cores()
    return f"""\
# Written once; yours to edit. Made for a machine with {count} cores.
telemetry: {{enabled: false}}
concurrency:
  runs:
    max_concurrent_runs: {max(1, count // 2)}
    tag_concurrency_limits:
      - {{key: {ORDER_TAG}, value: {{applyLimitPerUniqueValue: true}}, limit: 1}}
  pools: {{granularity: op, default_limit: {count}}}
run_coordinator:
  module: {_COORDINATOR["module"]}
  class: {_COORDINATOR["class"]}
  config: {{dequeue_interval_seconds: 1}}
run_monitoring:
  enabled: true
  poll_interval_seconds: 3
  start_timeout_seconds: 60
  cancel_timeout_seconds: 15
  free_slots_after_run_end_seconds: 5  # slots leak when a run worker is killed
run_retries:
  enabled: true
  max_retries: 3
  retry_on_asset_or_op_failure: false  # a lost worker is retried, a failed step is not
nux: {{enabled: false}}
"""


def brought_up_to_date(text: str) -> str | None:
    """The text of an earlier version's file as this version needs it; None where nothing is to be
    changed.

    Earlier versions left the queue to Dagster (``run_queue``), which knows no order of generations.
    Now it is ours, with the settings that the queue had. A file with a ``run_coordinator`` is up to
    date, or somebody has chosen another queue: it stays. What people changed or added stays, their
    comments too.
    """
    try:
        found = yaml.safe_load(text)
    except UNREADABLE:
        return None  # `refuse_foreign_code` says what is wrong with it
    if not isinstance(found, dict) or "run_queue" not in found or "run_coordinator" in found:
        return None
    queue, concurrency = (found.get(name) or {} for name in ("run_queue", "concurrency"))
    runs = concurrency.get("runs") or {} if isinstance(concurrency, dict) else None
    if not isinstance(queue, dict) or not isinstance(runs, dict):
        return None
    # The limits of the queue would not count beside those of `concurrency`.
    limits = ("max_concurrent_runs", "tag_concurrency_limits")
    runs = {name: queue[name] for name in limits if name in queue} | runs
    tagged = runs.get("tag_concurrency_limits") or []
    if _ORDER not in tagged:
        runs = {**runs, "tag_concurrency_limits": [*tagged, _ORDER]}
    settings = {name: value for name, value in queue.items() if name not in limits}
    changed = {
        "concurrency": {**concurrency, "runs": runs},
        "run_coordinator": {**_COORDINATOR, "config": settings},
    }
    wanted = {name: value for name, value in found.items() if name != "run_queue"} | changed
    return _NOTE + _written(text, wanted, changed)


def _written(text: str, wanted: dict[str, Any], changed: dict[str, Any]) -> str:
    """``wanted`` as YAML: the text with the parts of what has ``changed`` replaced, as far as it can
    be taken apart.
    """
    left = dict(changed)
    parts = []
    for part in re.split(r"(?m)^(?=[^\s#])", text):  # one a setting of the top level
        name = part.partition(":")[0].strip("\"' ")
        name = "run_coordinator" if name == "run_queue" else name
        if name in left:
            comments = [line for line in part.splitlines() if line.lstrip().startswith("#")]
            part = "\n".join([_yaml({name: left.pop(name)}).rstrip("\n"), *comments, ""])
        parts.append(part if part.endswith("\n") or not part else f"{part}\n")
    edited = "".join(parts) + (_yaml(left) if left else "")
    try:
        if yaml.safe_load(edited) == wanted:
            return edited
    except UNREADABLE:
        pass
    return _yaml(wanted)


def _yaml(settings: dict[str, Any]) -> str:
    return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

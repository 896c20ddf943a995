"""What every step has around it: its config and generation, progress, watchdog, a way to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagster import OpExecutionContext

from ringrift_pipeline.orchestration.names import generation_key
from ringrift_pipeline.orchestration.progress import Progress, ProgressFile
from ringrift_pipeline.orchestration.watchdog import Watchdog
from ringrift_pipeline.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from ringrift_pipeline.selfplay import Plan


@dataclass(frozen=True)
class Step:
    """A running step, as the rooms' functions need it."""

    config: str
    generation: int
    store: Store
    progress: Progress
    should_stop: Callable[[], bool]

    @property
    def key(self) -> str:
        """``config generation 0007``, for messages."""
        return f"{self.config} generation {generation_key(self.generation)}"

    def plan(self) -> Plan:
        """The generation's plan. Raises MissingArtefactError if selfplay has not been planned."""
        from ringrift_pipeline.selfplay import load_plan

        return load_plan(self.store, self.config, self.generation)

    def hooks(self) -> dict[str, Any]:
        """The keyword arguments every long-running function of the rooms takes."""
        return {"progress": self.progress, "should_stop": self.should_stop}


@contextmanager
def running_step(context: Any, config: str, generation: int | None = None) -> Iterator[Step]:
    """Progress file and watchdog around a step of ``config``; the generation is the partition,
    where it is not given.

    The step needs the resource ``store``.
    """
    op: OpExecutionContext = getattr(context, "op_execution_context", context)
    opened = op.resources.store.open()
    key = op.partition_key if generation is None else generation_key(generation)
    step_key = op.get_step_execution_context().step.key
    with (
        ProgressFile(opened.root, op.run_id, step_key, config, key) as progress,
        Watchdog.of_run(op.instance, op.run_id) as dog,
    ):
        yield Step(config, int(key), opened, progress, dog.stopping)

"""Training states landed beside the training: it stands still while its state is copied, no longer."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ringrift_pipeline.store.kinds import TRAINING_STATE
from ringrift_pipeline.training.state import PackedState, pack_state, write_state

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Store
    from ringrift_pipeline.training.run import TrainingRun


class StateSaver:
    """Lands the states of a training, one at a time, in a thread of its own.

    Memory: a copy of the state, until it has landed. The ``with`` block ends when the last state
    has landed; what went wrong with it is raised there, unless another error ends the block.

    Parameters
    ----------
    inputs:
        What the training was made from, for the state's metadata.
    """

    def __init__(self, store: Store, plan: Plan, inputs: dict[str, Any]) -> None:
        self._store, self._plan, self._inputs = store, plan, inputs
        self._landing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "saving", torch.set_num_threads, (1,))

    def save(self, run: TrainingRun, seconds: float) -> None:
        """Copy the run's state and begin to land it, and the ``seconds`` that the training has taken
        so far; the states before it are removed then.

        Waits for the state before it, and raises what went wrong with that one.

        Raises
        ------
        NonFiniteModelError
            if the state holds a tensor from which nothing can go on.
        """
        self.wait()
        packed = pack_state(run.state_dict())
        metadata = {
            "inputs": self._inputs,
            "step": run.iteration,
            "steps": run.total,
            "seconds": seconds,
        }
        self._landing = self._pool.submit(self._land, packed, metadata)

    def wait(self) -> None:
        """Until the last state has landed; raises what went wrong with it."""
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.result()

    def _land(self, packed: PackedState, metadata: dict[str, Any]) -> None:
        config, generation = self._plan.config, self._plan.generation
        with self._store.create(config, generation, TRAINING_STATE, metadata=metadata) as draft:
            write_state(draft, packed)
        self._store.remove(config, generation, TRAINING_STATE, draft.artefact.path)

    def __enter__(self) -> StateSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.wait()
            else:  # of two errors the training's is the one to hear of
                with contextlib.suppress(Exception):
                    self.wait()
        finally:
            self._pool.shutdown()


__all__ = ["StateSaver"]

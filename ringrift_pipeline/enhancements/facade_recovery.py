"""The last good state of a run, and the way back to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ringrift_pipeline.enhancements import state_forms as forms
from ringrift_pipeline.enhancements.checkpoint_averaging import CheckpointAverager
from ringrift_pipeline.enhancements.facade_state import copied
from ringrift_pipeline.enhancements.training_stability import LossMonitor, Snapshot


class Recovery:
    """Keeps what a run goes back to when it has diverged.

    Args:
        snapshot: of the model and the optimizer.
        averager, monitor: go back with them; None where switched off.
        every: good steps between two snapshots.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        averager: CheckpointAverager | None,
        monitor: LossMonitor | None,
        every: int,
    ) -> None:
        self._snapshot = snapshot
        self._averager = averager
        self._monitor = monitor
        self._every = every
        self._extra: dict[str, Any] = {}  # averager, monitor and counts, as of the snapshot
        self._steps = 0  # since the snapshot

    @property
    def ready(self) -> bool:
        """Whether there is a state to go back to."""
        return self._snapshot.taken

    def count_step(self) -> None:
        """Count an optimizer step."""
        self._steps += 1

    def keep(self, step: int, unaveraged: Sequence[int]) -> None:
        """Take the present state, of that step; ``unaveraged`` comes back with it."""
        self._snapshot.take()
        self._extra = {
            "step": step,
            "averager": None if self._averager is None else self._averager.state_dict(),
            "unaveraged": list(unaveraged),
            "monitor": None if self._monitor is None else self._monitor.state_dict(),
        }
        self._steps = 0

    def keep_if_due(self, step: int, unaveraged: Sequence[int]) -> None:
        """``keep``, when a snapshot is due: the present weights have just shown a good loss."""
        if self._monitor is not None and self._steps >= self._every and self._monitor.healthy:
            self.keep(step, unaveraged)

    def restore(self) -> tuple[int, list[int]]:
        """Go back; returns the ``step`` and ``unaveraged`` of the state."""
        self._snapshot.restore()
        if self._averager is not None:
            self._averager.load_state_dict(self._extra["averager"])
        if self._monitor is not None:
            self._monitor.load_state_dict(self._extra["monitor"])
        self._steps = 0
        return self._extra["step"], list(self._extra["unaveraged"])

    def reset(self) -> None:
        """Forget the kept state."""
        self._snapshot.load_state_dict(None)
        self._extra = {}
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Copies: tensors, plain values, dicts and lists."""
        return {
            "snapshot": self._snapshot.state_dict(),
            "snapshot_extra": copied(self._extra),
            "steps_since_snapshot": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; ``ValueError`` when it is of another model or damaged."""
        forms.record(
            snapshot=forms.optional(forms.anything),
            snapshot_extra=forms.mapping(forms.anything),
            steps_since_snapshot=forms.whole(),
        )("", state)
        extra = copied(state["snapshot_extra"])
        if state["snapshot"] is not None or extra:
            self._check_extra(extra)
        if (state["snapshot"] is None) != (not extra):
            raise ValueError("snapshot and snapshot_extra must be there both or not at all")
        with forms.naming("snapshot"):
            self._snapshot.load_state_dict(state["snapshot"])
        self._extra = extra
        self._steps = int(state["steps_since_snapshot"])

    def _check_extra(self, extra: Mapping[str, Any]) -> None:
        with forms.naming("snapshot_extra"):
            forms.record(
                step=forms.whole(),
                unaveraged=forms.listed(forms.whole(), exactly=2),
                averager=forms.anything,
                monitor=forms.anything,
            )("", extra)
            for name, part in (("averager", self._averager), ("monitor", self._monitor)):
                if (extra[name] is None) != (part is None):
                    raise ValueError(f"{name} is there on one side only")
            if self._averager is not None:
                with forms.naming("averager"):
                    self._averager.check_state(extra["averager"], self._snapshot.model)
            if self._monitor is not None:
                monitor = self._monitor
                scratch = LossMonitor(
                    monitor.spike_factor, monitor.window, monitor.divergence_patience
                )
                with forms.naming("monitor"):
                    scratch.load_state_dict(extra["monitor"])


__all__ = ["Recovery"]

"""When the computer's clock is turned back.

Dagster's daemon spaces what it does by that clock: turned back by an hour, its queue and its sensors
rest for that hour. Whoever runs the daemon looks at the clock as well, and starts it again.
"""

from __future__ import annotations

import time

from dagster import DagsterInstance
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import SensorInstigatorData

TOLERANCE = 5.0  # seconds that the daemon may rest too long


class TurnedBack:
    """``turned_back()``: was the clock turned back since the last call, or since this was made?"""

    def __init__(self) -> None:
        self._ahead = _ahead()

    def __call__(self) -> bool:
        before, self._ahead = self._ahead, _ahead()
        return before - self._ahead > TOLERANCE


def _ahead() -> float:
    """Seconds that the computer's clock is ahead of one that nobody can turn."""
    return time.time() - time.monotonic()


def forget_the_future(instance: DagsterInstance) -> list[str]:
    """Let sensors tick again whose last tick was at a time that has not come; their names.

    For the one who runs the daemon, while it is down.
    """
    freed = []
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        data = state.instigator_data
        if not isinstance(data, SensorInstigatorData):
            continue
        last = max(data.last_tick_timestamp or 0.0, data.last_tick_start_timestamp or 0.0)
        if last > time.time():
            ready = data._replace(last_tick_timestamp=None, last_tick_start_timestamp=None)
            instance.update_instigator_state(state.with_data(ready))
            freed.append(state.instigator_name)
    return freed

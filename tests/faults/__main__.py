"""The long sets of the fault tests, whole or in parts, and their figures.

    python -m faults [PART …] [--share 1/10] [--seed N] [--count N] [--only TEXT] [--ledger FILE]

(from ``tests/``). Without a part all of them run, which takes days of one core; ``--share 1/10`` does
every tenth case. With a ledger a session that was stopped goes on where it was, and ``--figures``
prints what is in it. The last parts, from ``fuzz`` on, count no cases: their tests pass or fail, and
run whole in every share. ``python -m faults.fuzzing`` is the fuzzer, for as many inputs as one likes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

from . import tally

HERE = Path(__file__).parent
PARTS = {
    "kills": ["test_kills.py", "test_writers.py::test_a_writer_killed_at_every_event"],
    "disk": [
        "test_failing_disk.py",
        "test_writers.py::test_every_event_of_a_writer_fails",
        "test_sensor_disk.py::test_the_events_of_a_tick_fail",
    ],
    "power": [
        "test_power_loss.py",
        "test_writers.py::test_the_power_goes_at_any_moment_of_a_writer",
        "test_sensor_disk.py::test_the_power_goes_at_many_moments_of_a_tick",
    ],
    "corruption": ["test_corruption.py", "test_loose_corruption.py", "test_healing.py"],
    "loop": ["test_random_kills.py::test_a_loop_killed_again_and_again"],
    "training": ["test_random_kills.py::test_a_training_killed_at_any_step_makes_the_same_weights"],
    "workers": ["test_worker_kills.py"],
    "dagster": ["test_loop_kills.py"],
    "servers": ["test_server_kills.py"],
    "ticks": ["test_sensor_kills.py"],
    "fuzz": ["test_fuzz.py"],
    "hostile": ["test_sizes.py", "test_nothing_runs_code.py"],
    "processes": [
        "test_processes.py",
        "test_hung_steps.py",
        "test_hung_services.py",
        "test_clock.py",
    ],
    "concurrency": ["test_concurrency.py"],
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--share", default="1/1", metavar="K/N", help="of every N cases the K-th")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="random cases of a test that has any")
    parser.add_argument("--only", metavar="TEXT", help="tests whose name matches, as pytest's -k")
    parser.add_argument("--ledger", type=Path, help="file of finished cases")
    parser.add_argument("--figures", action="store_true", help="only print those of the ledger")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {min(unknown)!r}: there are {', '.join(PARTS)}")
    os.environ["RINGRIFT_FAULTS_SHARE"] = arguments.share
    os.environ["RINGRIFT_FAULTS_SEED"] = str(arguments.seed)
    if arguments.count is not None:
        os.environ["RINGRIFT_FAULTS_COUNT"] = str(arguments.count)
    if arguments.ledger is not None:
        os.environ["RINGRIFT_FAULTS_LEDGER"] = str(arguments.ledger.absolute())
    tally.share()  # a share that means nothing is refused here
    if arguments.figures:
        tally.recall(any_seed=True)
        print("\n".join(tally.figures()))
        return 0
    places = [HERE / place for part in arguments.parts or PARTS for place in PARTS[part]]
    line = ["-m", "faults", "-s", "-q", "-p", "no:cacheprovider", *map(str, places)]
    return int(pytest.main([*line, *(["-k", arguments.only] if arguments.only else [])]))


if __name__ == "__main__":
    sys.exit(main())

"""What a soak (`soak.py`) has seen, and what is claimed of it."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from orchestration import Claim, Span, union
from process_tree import FILES, PSS, THREADS
from scipy.stats import CensoredData, ecdf

KINDS = ("step", "run", "daemon", "webserver", "code-server", "loop")
SERVICES = ("loop", "code-server", "daemon", "webserver")
ENDING = ("run", "code-server", "loop")  # with which runs end
TOLD = 1.0  # seconds between the start of a step and that of its own work, at most
TARGET = 20.0  # seconds from a kill to the next useful step
ENDLESS = 1e9  # seconds, for SciPy, which knows no infinity
GENERATION = 600.0  # seconds in which one generation has to be decided
GROWTH = {PSS: 30.0, FILES: 5.0, THREADS: 2.0}  # an hour, that counts as flat
LONG = 900.0  # seconds that a process has to be there for its growth to be told
LOADING = 300.0  # of these that do not count
UNITS = {PSS: "MB", FILES: "files", THREADS: "threads"}
NEWEST = 3  # retention keeps two, and one is being made
# kB of a generation that may stay. Artefacts: 160 games of 18.6 kB, and a megabyte of model, reports,
# tables and pictures, with room for half as much again. History: 870 kB where eight shards are played
# and nothing is killed (docs/scale.md), for a run and the three retries that it may have.
STAYS = {"artefacts": 6_000.0, "history": 3_500.0}


class Disk(NamedTuple):
    """What there was after retention, in kB.

    Attributes:
        at: seconds since the epoch.
        decided: generations.
        artefacts: of all generations.
        behind: how many generations lie behind: neither one of the `NEWEST`, of which everything stays,
            nor the reigning champion's.
        stayed: artefacts of those.
        history: Dagster's.
    """

    at: float
    decided: int
    artefacts: float
    behind: int
    stayed: float
    history: float


class Begun(NamedTuple):
    """Something new that a step began to do and did not bring to its end; seconds since the epoch.

    Attributes:
        run: when its run was asked for.
        at: when the step was.
    """

    run: float
    at: float


class Work(NamedTuple):
    """What the history tells of the work of steps.

    Attributes:
        spans: of work that came to its end, of each step of a generation the first that did: after it
            there is nothing left to do for that step, whoever runs it again.
        begun: of such steps before that, what was cut off; of a shard also the work whose process was
            killed after the shard had landed: nobody works on it again, so that it has no span.
        succeeded: runs that succeeded, by generation.
    """

    spans: list[Span]
    begun: list[Begun]
    succeeded: Counter[str]


@dataclass
class Seen:
    """What was seen meanwhile; times are seconds since the epoch.

    Attributes:
        kills: when, and what kind.
        restarts: when the command was begun again.
        samples: of a service's process: when, kind, process id, what it takes.
        disk: after each retention.
        games: how many shards of decided generations hold a game, by its id.
        landings: names of the folders that landed, by generation and kind of shard. One that is gone
            again was seen all the same.
        lost: games of plans that no shard holds.
        checked: generations that are decided.
        unloadable: how often the champion could not be opened, or was there and is no more.
    """

    began: float = 0.0
    ended: float = 0.0
    kills: list[tuple[float, str]] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    samples: list[tuple[float, str, int, dict[str, float]]] = field(default_factory=list)
    disk: list[Disk] = field(default_factory=list)
    games: Counter[str] = field(default_factory=Counter)
    landings: defaultdict[tuple[int, str], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )
    lost: int = 0
    checked: set[int] = field(default_factory=set)
    unloadable: int = 0
    had_champion: bool = False

    def see_champion(self, store: Any, config: str) -> None:
        """Open the champion; one that was there and is no more cannot be loaded either."""
        from ringrift_pipeline.store import StoreError

        try:
            champion = store.champion(config)
            if champion is not None:
                self.had_champion = True
                store.open(champion.path)
            elif self.had_champion:
                self.unloadable += 1
        except StoreError:
            self.unloadable += 1

    def see_landings(self, store: Any, config: str) -> None:
        """Note every shard's folders, of all generations: one played anew has another folder."""
        from ringrift_pipeline.store.kinds import SHARD_PREFIX

        for generation in store.generations(config):
            for kind in store.kinds(config, generation):
                if kind.startswith(SHARD_PREFIX):
                    found = store.artefacts(config, generation, kind)
                    self.landings[generation, kind].update(one.path.name for one in found)


# --- what the history says ----------------------------------------------------------------------


def useful_work(data: Path, config: str) -> Work:
    """The work of a config's steps, by Dagster's history."""
    from dagster import DagsterEventType, DagsterRunStatus, RunsFilter

    from ringrift_pipeline.orchestration.instance import open_instance
    from ringrift_pipeline.orchestration.names import PARTITION_TAG, job_name
    from ringrift_pipeline.orchestration.step import BEGAN, SECONDS

    spans: dict[tuple[str, str], Span] = {}
    begun: list[tuple[tuple[str, str], Begun]] = []
    succeeded: Counter[str] = Counter()
    kinds = {DagsterEventType.ENGINE_EVENT, DagsterEventType.STEP_START}
    with open_instance(data) as instance:
        for record in instance.get_run_records(RunsFilter(job_name=job_name(config))):
            run = record.dagster_run
            generation = run.tags[PARTITION_TAG]
            if run.status == DagsterRunStatus.SUCCESS:
                succeeded[generation] += 1
            for entry in instance.all_logs(run.run_id, of_type=kinds):
                event = entry.dagster_event
                if event is None:
                    continue
                step = (generation, str(event.step_key))
                if event.event_type == DagsterEventType.STEP_START:
                    asked = record.create_timestamp.timestamp()
                    begun.append((step, Begun(asked, entry.timestamp)))
                elif SECONDS in (told := event.engine_event_data.metadata):
                    start = float(str(told[BEGAN].value))
                    span = (start, start + float(str(told[SECONDS].value)))
                    spans[step] = min(spans.get(step, span), span, key=lambda one: one[1])
    before = [
        one for step, one in begun if one.at < spans.get(step, (math.inf, math.inf))[0] - TOLD
    ]
    return Work([*spans.values()], before, succeeded)


def to_next_work(kills: list[tuple[float, str]], spans: list[Span]) -> list[tuple[str, float]]:
    """Seconds from each kill to the next work, with what was killed: 0 where work went on that came to
    its end, infinity where none was done any more.
    """
    return [
        (kind, min((max(start, at) - at for start, end in spans if end > at), default=math.inf))
        for at, kind in kills
    ]


def alone(
    kills: list[tuple[float, str]], waits: list[float], begun: list[Begun]
) -> list[tuple[float, bool]]:
    """Each wait up to the next kill that falls into it, and whether work came before that: some that
    came to its end, or that was begun and which that kill may have cut off. What still went on
    in a run that the kill itself ends was not begun after it; the web server's death stops no work.
    """
    found = []
    for (at, kind), seconds in zip(kills, waits, strict=True):
        others = (other - at for other, what in kills if other > at and what != "webserver")
        until = min(others, default=math.inf)
        since = at if kind in ENDING else 0.0
        later = (one.at - at for one in begun if one.at > at and one.run > since)
        wait = seconds if seconds <= until else min([until, *later])
        found.append((wait, seconds <= until or wait < until))
    return found


def quantile(waits: list[tuple[float, bool]], share: float) -> float:
    """What ``share`` of waits do not exceed, of those that were cut off too (`alone`): Kaplan and
    Meier (1958). Infinity where too many were cut off to tell.
    """
    cut_off = CensoredData.right_censored(
        [min(seconds, ENDLESS) for seconds, _ in waits], [not ended for _, ended in waits]
    )
    told = ecdf(cut_off).cdf
    reached = np.flatnonzero(told.probabilities >= share - 1e-12)
    value = float(told.quantiles[reached[0]]) if reached.size else ENDLESS
    return value if value < ENDLESS else math.inf


def slope(samples: list[tuple[float, int, float]]) -> float | None:
    """Growth by hour of (time, process, value) by least squares, each process with a level of its
    own; None where no process was there for `LONG`: what one grows while it loads says nothing.
    """
    by_process = defaultdict(list)
    for at, pid, value in samples:
        by_process[pid].append((at, value))
    top = bottom = 0.0
    for pairs in by_process.values():
        if pairs[-1][0] - pairs[0][0] >= LONG:
            times, values = np.array([one for one in pairs if one[0] - pairs[0][0] >= LOADING]).T
            times = times - times.mean()
            top += float((times * (values - values.mean())).sum())
            bottom += float((times**2).sum())
    return 3600.0 * top / bottom if bottom else None


# --- claims -------------------------------------------------------------------------------------


def claim(name: str, value: float, unit: str, **more: Any) -> Claim:
    """One claim; a value that is infinite is told as None, which JSON knows."""
    told = {"claim": f"soak: {name}", "value": finite(value), "unit": unit}
    return told | {"reference": None, "ratio": None, "target": None} | more


def finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def kept(each: Claim) -> bool:
    """Was a claim's limit kept, if it has one? A ratio of None is that of a value of 0 or less."""
    return each["target"] is None or each["ratio"] is None or each["ratio"] >= each["target"]


def limited(name: str, value: float, unit: str, bound: float, means: bool, **more: Any) -> Claim:
    """One claim whose value is to be ``bound`` at most."""
    ratio = bound / value if value > 0 else None
    told = {"reference": bound, "ratio": ratio and round(ratio, 3)}
    return claim(name, value, unit, **told, target=1.0 if means else None, **more)


def least(name: str, value: int, unit: str, at_least: int, means: bool, **more: Any) -> Claim:
    """One claim whose value is to be ``at_least``."""
    told = {"reference": at_least, "ratio": round(value / at_least, 3)}
    return claim(name, value, unit, **told, target=1.0 if means else None, **more)


def none(name: str, value: int, unit: str, means: bool = True) -> Claim:
    """One claim whose value has to be 0."""
    told = {"reference": 0, "ratio": 0.0 if value else 1.0}
    return claim(name, value, unit, **told, target=1.0 if means else None)


def waiting(kills: list[tuple[float, str]], work: Work, means: bool) -> Iterator[Claim]:
    """Claims of `to_next_work`: over all kills, over those that left no useful work, and by kind.

    The limit is on what one kill costs (`alone`): a wait ends where work is begun that another kill then
    cuts off, and one into which another kill falls before that counts up to that one. Whole waits, up to
    work that came to its end, are told as well. Their percentiles are values that were measured, the higher
    of two: infinity has no mean with another.
    """
    waits = to_next_work(kills, work.spans)
    everything = [seconds for _, seconds in waits]
    cut = alone(kills, everything, work.begun)
    stopped = [number for number, seconds in enumerate(everything) if seconds > 0.0]
    for chosen, which in (
        (range(len(waits)), "kills"),
        (stopped, "kills that left no useful work"),
    ):
        mine, whole = [cut[number] for number in chosen], [everything[number] for number in chosen]
        for share, name in ((50, "median"), (99, "99th percentile")):
            if mine:
                what = f"next useful step, {name} of {len(mine)} {which}"
                others = sum(not ended for _, ended in mine)
                yield limited(
                    f"from a kill to the {what}",
                    quantile(mine, share / 100.0),
                    "s",
                    TARGET,
                    means,
                    cut_off_by_another_kill=others,
                )
                value = float(np.percentile(whole, share, method="higher"))
                yield claim(f"with all kills that fall between, to the {what}", value, "s")
    endless = everything.count(math.inf)
    yield none("kills after which no work was done any more", endless, "kills", means)
    for kind in KINDS:
        seconds = [wait for one, wait in waits if one == kind]
        mine = [one for one, (name, _) in zip(cut, waits, strict=True) if name == kind]
        if seconds:
            yield claim(
                f"from a kill of a {kind} to the next useful step, median of {len(seconds)}",
                quantile(mine, 0.5),
                "s",
                most_that_ended=finite(
                    max((one for one, ended in mine if ended), default=math.inf)
                ),
                all=[(finite(one), ended) for one, ended in mine],
                with_all_kills_that_fall_between=[finite(one) for one in seconds],
            )


def staying(disk: list[Disk], means: bool) -> Iterator[Claim]:
    """Claims of what stays on the disk of a generation."""
    looks = len({look.decided for look in disk})
    yield least("looks at the disk with a generation between them", looks, "looks", 2, means)
    behind = disk[-1].behind if disk else 0
    yield least("generations that lie behind, for their disk", behind, "generations", 1, means)
    what = "disk that stays of a generation after retention"
    if behind:
        stayed = disk[-1].stayed
        yield limited(
            f"{what}, artefacts", stayed / behind, "kB", STAYS["artefacts"], means, of=behind
        )
    if looks > 1:
        first, last = disk[0], disk[-1]
        each = (last.history - first.history) / (last.decided - first.decided)
        total = round(last.history)
        yield limited(f"{what}, history", each, "kB", STAYS["history"], means, last=total)


def claims(soak: Seen, work: Work, means: bool) -> Iterator[Claim]:
    """All claims of a soak that is over.

    Args:
        means: whether what takes an hour to tell has limits.
    """
    wall = soak.ended - soak.began
    load = [round(one, 2) for one in os.getloadavg()]
    yield least(
        "generations completed",
        len(soak.checked),
        "generations",
        max(1, int(wall // GENERATION)),
        means,
        seconds=round(wall),
        load_average=load,
        cores=len(os.sched_getaffinity(0)),
    )
    kills = Counter(kind for _, kind in soak.kills)
    moments = [(round(at - soak.began, 1), kind) for at, kind in soak.kills]
    yield least("kills", len(soak.kills), "kills", 1, means, by_kind=dict(kills), at=moments)
    yield claim(
        "times the command was begun again",
        len(soak.restarts),
        "times",
        after_its_own_kill=kills["loop"],
    )
    yield claim(
        "share of time in work that was not lost", union(work.spans) / wall, "of the wall time"
    )
    yield from waiting(soak.kills, work, means)
    twice = sum(count - 1 for count in soak.games.values())
    replayed = sum(len(names) - 1 for names in soak.landings.values() if names)
    expected = list(range(len(soak.checked)))
    yield claim("games counted", len(soak.games), "games")
    yield none("games lost", soak.lost, "games")
    yield none("games in two shards", twice, "games")
    yield none("shards played twice", replayed, "shards")
    again = sum(count - 1 for count in work.succeeded.values())
    yield none("generations made twice", again, "generations")
    gaps = len(set(expected) ^ soak.checked)
    yield none("generations missing", gaps, "generations")
    yield none("champion not loadable", soak.unloadable, "looks")
    for kind in SERVICES:
        for what, unit in UNITS.items():
            values = [(at, pid, told[what]) for at, one, pid, told in soak.samples if one == kind]
            growth = slope(values)
            name = f"growth of the {kind}'s {what}"
            if growth is None:
                yield claim(f"{name}: killed too often to tell", math.inf, f"{unit} an hour")
                continue
            last, most = values[-1][2], max(value for _, _, value in values)
            more = {"last": round(last, 1), "most": round(most, 1)}
            yield limited(name, growth, f"{unit} an hour", GROWTH[what], means, **more)
    yield from staying(soak.disk, means)

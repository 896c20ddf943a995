"""Positions that are analysed together, the most urgent first."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ringrift_pipeline.analysis.analysts import Analyst, Found, analyst_for
from ringrift_pipeline.analysis.jobs import Job
from ringrift_pipeline.search import Player

#: Times of forgetting, config, player, and the simulations that the trees are made for.
GroupKey = tuple[int, str, str, int]


class Group:
    """Jobs of one config and player: those that wait, and those that are under way.

    The trees are made at the first step. ``visits`` is the most simulations of a job.
    """

    def __init__(self, player: Player, visits: int) -> None:
        self.player = player
        self.visits = visits
        self._analyst: Analyst | None = None
        self._waiting: list[tuple[tuple[int, int], Job]] = []  # a heap
        self._running: dict[int, Job] = {}  # by number

    def add(self, job: Job) -> None:
        """Let a job wait."""
        heapq.heappush(self._waiting, (job.rank, job))

    def first(self) -> tuple[int, int] | None:
        """Rank of the most urgent job, None if there is no job."""
        waiting = self._waiting[0][0] if self._waiting else None
        running = min((job.rank for job in self._running.values()), default=None)
        return min((rank for rank in (waiting, running) if rank is not None), default=None)

    def step(self) -> Found:
        """Start what there is room for and work for a moment; the jobs that ended.

        They stay ours until :meth:`forget`. Whatever the player raises passes through.
        """
        if self._analyst is None:
            self._analyst = analyst_for(self.player, self.visits)
        room = min(self._analyst.room, len(self._waiting))
        if room:
            jobs = [heapq.heappop(self._waiting)[1] for _ in range(room)]
            self._running.update((job.number, job) for job in jobs)
            self._analyst.start(jobs)
        return self._analyst.step()

    def forget(self, job: Job) -> None:
        """A job under way has got its answer."""
        self._running.pop(job.number, None)

    def fail(self) -> list[Job]:
        """After :meth:`step` raised: the jobs it was about, all if none was under way."""
        self._analyst = None
        jobs = list(self._running.values()) or [job for _, job in self._waiting]
        if not self._running:
            self._waiting = []
        return jobs

    def drop(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Give up jobs, waiting or under way; those that were given up."""
        running = [job for job in self._running.values() if unwanted(job)]
        if running and self._analyst is not None:
            self._analyst.drop(running)
        for job in running:
            self.forget(job)
        waiting = [job for _, job in self._waiting if unwanted(job)]
        if waiting:
            self._waiting = [pair for pair in self._waiting if not unwanted(pair[1])]
            heapq.heapify(self._waiting)
        return running + waiting

"""Several matches over worker processes.

Sets are cut into jobs of a fixed size, which depend on the match alone, so the games are the same
bytes for any number of workers. Jobs count in their order: a sequential match ends after the
first job with which its test is decided, and what was played beyond that is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ringrift_pipeline.evaluation.processes import (
    WorkerDiedError,
    asked_to_stop,
    tell,
    work_through,
)

if TYPE_CHECKING:
    import polars as pl

    from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop

__all__ = ["Entrant", "Match", "Played", "TournamentError", "job_edges", "play_matches"]

JOB_GAMES = 32
"""Games that one job plays side by side, at most (and at least one set)."""


class TournamentError(WorkerDiedError):
    """Matches could not be played to their end; the message says what to do."""


@dataclass(frozen=True)
class Entrant:
    """Somebody who plays, loaded by `load_player` in every worker.

    Attributes:
        name: as it stands in line-ups and ratings.
        spec: what `load_player` takes: ``random``, ``heuristic``, a model's folder, …
        simulations: a decision, where the player searches.
        seed: of the player.
        data: data root, for specs that name something in it.
        device: ``cpu``, ``cuda`` or ``auto``.
        settings: of the search, anything hashable with the attributes of ``SearchSettings``.
        symmetries: of the board that a network's evaluations are averaged over.
    """

    name: str
    spec: str
    simulations: int = 64
    seed: int = 0
    data: str | None = None
    device: str = "auto"
    settings: Any = None
    symmetries: int = 1


@dataclass(frozen=True)
class Match:
    """A line-up and how many rotated sets it plays.

    Attributes:
        name: of the match; unique.
        line_up: name of the entrant of every seat in rotation 0.
        sets: rotated sets, the most of them where `decided` may end it sooner.
        decided: asked with the match's games so far, in order, after every job; True ends it.
    """

    name: str
    line_up: tuple[str, ...]
    sets: int
    decided: Callable[[pl.DataFrame], bool] | None = None


class Played(Protocol):
    """Where the games of finished jobs are kept, so that a killed tournament goes on."""

    def load(self, job: int) -> pl.DataFrame | None:
        """The games of a job that was finished before, None if it was not."""
        ...

    def keep(self, job: int, games: pl.DataFrame) -> None:
        """Keep the games of a job."""
        ...


@dataclass(frozen=True)
class _Job:
    number: int
    config: str
    match: str
    entrants: tuple[Entrant, ...]
    line_up: tuple[str, ...]
    sets: tuple[int, ...]
    seed: int
    opening_decisions: int

    @property
    def games(self) -> int:
        return len(self.sets) * len(self.line_up)


def play_matches(
    config: str,
    entrants: Sequence[Entrant],
    matches: Sequence[Match],
    *,
    seed: int,
    workers: int = 0,
    opening_decisions: int | None = None,
    played: Played | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> pl.DataFrame:
    """Play all matches and return their games, by match and set (see `matches.GAMES_SCHEMA`).

    All matches use the same openings.

    Args:
        config: board and player count.
        entrants: everybody in the line-ups.
        matches: what to play.
        seed: of openings and decisions.
        workers: processes; 0 means one a core, 1 plays in this process.
        opening_decisions: random decisions that open a set; None for the usual number.
        played: keeps every finished job, of the very same matches; None keeps nothing.
        progress: called with games finished and planned and a line that says of which match.
        should_stop: asked at least every half second.

    Raises:
        Interrupted: if asked to stop; only what ``played`` holds is kept.
        TournamentError: if a worker dies or hangs; what ``played`` holds is kept.
        MatchError: for a line-up that does not fit.
    """
    from ringrift_pipeline.evaluation.matches import OPENING_DECISIONS, MatchError
    from ringrift_pipeline.selfplay.workers import cores

    known = {entrant.name: entrant for entrant in entrants}
    if len({match.name for match in matches}) != len(matches):
        raise MatchError("two matches have the same name")
    for match in matches:
        for name in match.line_up:
            if name not in known:
                raise MatchError(f"match {match.name}: nobody is called {name!r}")
        if match.sets < 1:
            raise MatchError(f"match {match.name}: it needs at least one set, got {match.sets}")
    if workers < 0:
        raise ValueError(f"workers must be 0 (one a core) or more, not {workers}")
    opening = OPENING_DECISIONS if opening_decisions is None else opening_decisions
    jobs = list(_jobs(config, known, matches, seed, opening))
    ledger = _Ledger(matches, jobs, played, progress, should_stop)
    missing = ledger.recall()
    count = min(workers or cores(), len(missing))
    if count <= 1:
        _play_here(missing, ledger)
    else:
        _play_in_processes(missing, ledger, count)
    return ledger.table()


def job_edges(sets: int, seats: int) -> list[int]:
    """Where a match of so many rotated sets is cut: after each of them its test is asked."""
    most = max(1, JOB_GAMES // seats)
    pieces = -(-sets // most)
    return [sets * i // pieces for i in range(pieces + 1)]


def _jobs(
    config: str,
    known: Mapping[str, Entrant],
    matches: Sequence[Match],
    seed: int,
    opening_decisions: int,
) -> Iterator[_Job]:
    number = 0
    for match in matches:
        edges = job_edges(match.sets, len(match.line_up))
        players = tuple(known[name] for name in dict.fromkeys(match.line_up))
        for first, last in zip(edges, edges[1:], strict=False):
            sets = tuple(range(first, last))
            yield _Job(
                number, config, match.name, players, match.line_up, sets, seed, opening_decisions
            )
            number += 1


class _Ledger:
    """What has been played, in the order that counts."""

    def __init__(
        self,
        matches: Sequence[Match],
        jobs: Sequence[_Job],
        played: Played | None,
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> None:
        from ringrift_pipeline.selfplay.stopping import Reporter

        self._matches = {match.name: match for match in matches}
        self._jobs = jobs
        self._played = played
        self._next = {match.name: 0 for match in matches}
        self._of = {name: [job for job in jobs if job.match == name] for name in self._matches}
        self._landed: dict[int, pl.DataFrame] = {}
        self._running: dict[int, int] = {}
        self._recalled = 0  # games that were kept from an earlier try
        self.over: set[str] = set()
        self.reporter = Reporter(progress, should_stop)

    def recall(self) -> list[_Job]:
        """Take the games that were kept; returns the jobs without any."""
        missing = []
        for job in self._jobs:
            games = None if self._played is None else self._played.load(job.number)
            if games is None:
                missing.append(job)
            else:
                self._recalled += job.games
                self._take(job, games)
        return missing

    def land(self, job: _Job, games: pl.DataFrame) -> None:
        """Keep and take a job's games; ends its match if they decide it."""
        if self._played is not None:
            self._played.keep(job.number, games)
        self._take(job, games)

    def _take(self, job: _Job, games: pl.DataFrame) -> None:
        import polars as pl

        self._landed[job.number] = games
        self._running[job.number] = job.games
        own, match = self._of[job.match], self._matches[job.match]
        while job.match not in self.over and self._next[job.match] < len(own):
            if own[self._next[job.match]].number not in self._landed:
                break
            self._next[job.match] += 1
            if match.decided is not None:
                done = own[: self._next[job.match]]
                if match.decided(pl.concat([self._landed[piece.number] for piece in done])):
                    self.over.add(job.match)
        if self._next[job.match] == len(own):
            self.over.add(job.match)
        self.report(job)

    def wanted(self, job: _Job) -> bool:
        """Whether the job's match is not decided yet."""
        return job.match not in self.over

    def hear(self, message: tuple[int, int]) -> None:
        """Note how many games of a running job, by its number, have ended."""
        number, games = message
        job = self._jobs[number]
        self._running[job.number] = max(games, self._running.get(job.number, 0))
        self.report(job)

    def report(self, job: _Job) -> None:
        total = done = 0
        for name, own in self._of.items():
            counted = own[: self._next[name]] if name in self.over else own
            total += sum(piece.games for piece in counted)
            done += sum(self._running.get(piece.number, 0) for piece in counted)
        seconds = self.reporter.seconds
        self.reporter.report(
            done,
            total,
            f"now {job.match}, {(done - self._recalled) / seconds:.2f} games/s",
        )

    def check(self) -> None:
        """Raise Interrupted if asked to stop."""
        self.reporter.check("evaluation: stopped; run again to play what is missing")

    def table(self) -> pl.DataFrame:
        """The games that count."""
        import polars as pl

        counted = [
            self._landed[job.number]
            for name, own in self._of.items()
            for job in own[: self._next[name]]
        ]
        return pl.concat(counted)


def _play_here(jobs: Sequence[_Job], ledger: _Ledger) -> None:
    players: dict[Entrant, Any] = {}
    for job in jobs:
        if not ledger.wanted(job):
            continue
        ledger.check()

        def progress(done: int, total: int, message: str, at: _Job = job) -> None:
            ledger.hear((at.number, done))

        ledger.land(job, _play(job, players, progress, ledger.check))


def _play(
    job: _Job,
    players: dict[Entrant, Any],
    progress: Progress,
    check: Callable[[], None],
) -> pl.DataFrame:
    """Play one job in this process, with one torch thread wherever it is."""
    from ringrift_pipeline.evaluation.matches import play_sets
    from ringrift_pipeline.search import load_player
    from ringrift_pipeline.training.threads import torch_threads

    def never() -> bool:
        check()
        return False

    with torch_threads(1):
        for entrant in job.entrants:
            if entrant not in players:
                players[entrant] = load_player(
                    entrant.spec,
                    job.config,
                    simulations=entrant.simulations,
                    seed=entrant.seed,
                    data=entrant.data,
                    device=entrant.device,
                    settings=entrant.settings,
                    symmetries=entrant.symmetries,
                )
        return play_sets(
            job.config,
            {entrant.name: players[entrant] for entrant in job.entrants},
            job.line_up,
            job.sets,
            job.seed,
            match=job.match,
            opening_decisions=job.opening_decisions,
            progress=progress,
            should_stop=never,
        )


# -- processes ------------------------------------------------------------------------------

_players: dict[Entrant, Any] = {}  # a worker's, from job to job


def _work(job: _Job) -> pl.DataFrame:
    from ringrift_pipeline.selfplay.stopping import Interrupted

    def progress(done: int, total: int, message: str) -> None:
        tell((job.number, done))

    def check() -> None:
        if asked_to_stop():
            raise Interrupted("evaluation: stopped")

    return _play(job, _players, progress, check)


def _play_in_processes(jobs: Sequence[_Job], ledger: _Ledger, count: int) -> None:
    try:
        work_through(jobs, _work, count, ledger)
    except WorkerDiedError as error:
        raise TournamentError(
            f"evaluation: {error}; run again to play what is missing, with fewer selfplay.workers if "
            "memory is short"
        ) from error

"""The engine: what waits, what is analysed together, and who gets which answer."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator

from ringrift_pipeline import __version__
from ringrift_pipeline.analysis.analysts import capacity
from ringrift_pipeline.analysis.answers import (
    Record,
    answer,
    ended_answer,
    error_answer,
    given_up,
    warning_answer,
)
from ringrift_pipeline.analysis.groups import Group, GroupKey
from ringrift_pipeline.analysis.jobs import Job
from ringrift_pipeline.analysis.limits import KEPT_GROUPS
from ringrift_pipeline.analysis.positions import Positions
from ringrift_pipeline.analysis.protocol import (
    PROTOCOL,
    ActionQuery,
    AnalysisQuery,
    QueryError,
    id_of,
    read_line,
    read_query,
    warnings_of,
)
from ringrift_pipeline.analysis.roster import BASELINES, Roster
from ringrift_pipeline.game import ENGINE_VERSION, layout
from ringrift_pipeline.search import NetworkPlayer, Player, RolloutPlayer


class Engine:
    """Takes lines, works, and hands every answer to ``emit`` (one JSON object a call).

    Nothing happens by itself: :meth:`receive` takes a line and answers what can be answered at
    once, :meth:`step` works for a moment on the most urgent positions. Positions of the same
    config and player, and of about as many simulations, are searched together; when one ends, the
    next takes its place. For one thread.

    Args:
        config: of queries that name none.
        visits: simulations of queries that name none.
        roster: loads the players.
        emit: gets the answers. What it raises passes through.
    """

    def __init__(
        self, config: str, visits: int, roster: Roster, emit: Callable[[Record], None]
    ) -> None:
        self.config = config
        self.visits = visits
        self.roster = roster
        self.waiting = 0  # positions that have no answer yet
        self._emit = emit
        self._positions = Positions()
        self._groups: dict[GroupKey, Group] = {}  # the one worked on last at the end
        self._arrived = 0
        self._forgotten = 0  # how often the cache was cleared

    def receive(self, line: bytes) -> None:
        """Take one line (with or without its end); a blank one is nothing.

        Every other line is answered: by its results, at once or later, or by an error.
        """
        if line.strip():
            for told in self._reply(line.rstrip(b"\r\n")):
                self._emit(told)

    def refuse(self, error: QueryError) -> None:
        """Answer a line that could not be read as a whole."""
        self._emit(error_answer(None, str(error), error.field))

    def step(self) -> None:
        """Work for a moment on what is most urgent; does nothing when nothing waits."""
        ranked = [(rank, key) for key, group in self._groups.items() if (rank := group.first())]
        if not ranked:
            return
        key = min(ranked)[1]
        group = self._groups[key] = self._groups.pop(key)
        try:
            ended = [(job, answer(job, found)) for job, found in group.step()]
        except Exception as error:  # neither the engine nor other groups are the worse for it
            traceback.print_exc(file=sys.stderr)
            message = f"the analysis failed: {type(error).__name__}: {error}"
            ended = [(job, error_answer(job.id, message, None, job.turn)) for job in group.fail()]
        ended.sort(key=lambda pair: pair[0].rank)
        for job, _ in ended:
            group.forget(job)
            self.waiting -= 1
        self._tidy()
        for _, told in ended:
            self._emit(told)

    def _tidy(self) -> None:
        """Let go of the trees of groups that have no job, but for the newest few."""
        idle = [key for key, group in self._groups.items() if group.first() is None]
        for key in idle[:-KEPT_GROUPS] + [key for key in idle if key[0] != self._forgotten]:
            self._groups.pop(key, None)

    def _reply(self, line: bytes) -> Iterator[Record]:
        """What is said to a line at once."""
        name: str | None = None
        try:
            raw = read_line(line)
            name = id_of(raw)
            if name is not None:
                for warned in warnings_of(raw):
                    yield warning_answer(name, warned.field, warned.warning)
            query = read_query(raw)
            if isinstance(query, ActionQuery):
                yield from self._act(query)
            else:
                yield from self._admit(query)
        except QueryError as error:
            yield error_answer(name, str(error), error.field)
        except Exception as error:  # whatever a line holds, the next one is read
            traceback.print_exc(file=sys.stderr)
            yield error_answer(name, f"the query failed: {type(error).__name__}: {error}")

    def _admit(self, query: AnalysisQuery) -> Iterator[Record]:
        """Queue a query's turns, and answer those in which the game is over."""
        config, rows = self._positions.of(query, self.config)
        over = [turn for turn in query.turns if rows[turn][layout.PLAYER] < 0]
        left = [turn for turn in query.turns if rows[turn][layout.PLAYER] >= 0]
        if left:
            visits = query.max_visits or self.visits
            spec = query.player or query.model or self.roster.default
            player = self.roster.player(spec, config, visits)
            group = self._group(spec, config, player, visits)
            for turn in left:
                job = Job(
                    id=query.id,
                    turn=turn,
                    config=config,
                    row=rows[turn],
                    player=player,
                    visits=visits,
                    priority=query.priority,
                    number=self._arrived,
                    include_policy=query.include_policy,
                    max_moves=query.max_moves,
                )
                group.add(job)
                self._arrived += 1
                self.waiting += 1
        for turn in over:
            yield ended_answer(query.id, turn, config, rows[turn], query.include_policy)

    def _group(self, spec: str, config: str, player: Player, visits: int) -> Group:
        """Whom a job waits with."""
        size = visits if isinstance(player, RolloutPlayer) else 0
        if isinstance(player, NetworkPlayer):
            size = capacity(visits)
        key = (self._forgotten, config, spec, size)
        if key not in self._groups:
            self._groups[key] = Group(player, size)
        return self._groups[key]

    def _act(self, query: ActionQuery) -> Iterator[Record]:
        told: Record = {"id": query.id, "action": query.action}
        if query.action == "query_version":
            told |= {"version": __version__, "protocol": PROTOCOL, "rules": ENGINE_VERSION}
            yield told
        elif query.action == "query_models":
            loaded, models = self.roster.loaded(), self.roster.available()
            told |= {"default": self.roster.default, "baselines": list(BASELINES)}
            yield told | {"models": models, "loaded": loaded}
        elif query.action == "clear_cache":
            self._forgotten += 1
            self._positions.clear()
            self.roster.clear()
            self._tidy()
            yield told
        else:
            yield from self._terminate(query, told)

    def _terminate(self, query: ActionQuery, told: Record) -> Iterator[Record]:
        """Give up unanswered turns: of one id, or of all; of some turns, or of all."""
        if query.action == "terminate":
            told["terminateId"] = query.terminate_id
        if query.turn_numbers is not None:
            told["turnNumbers"] = query.turn_numbers
        yield told
        turns = None if query.turn_numbers is None else set(query.turn_numbers)
        dropped: list[Job] = []
        for group in self._groups.values():
            dropped += group.drop(
                lambda job: (
                    (query.action == "terminate_all" or job.id == query.terminate_id)
                    and (turns is None or job.turn in turns)
                )
            )
        self.waiting -= len(dropped)
        for job in sorted(dropped, key=lambda job: job.number):
            yield given_up(job)

"""Gumbel search for two to four players, batched over parallel games.

The algorithm of Danihelka et al. 2022 ("Policy improvement by planning with Gumbel") with
max^n backup over value vectors: Gumbel-top-k and sequential halving at the root, the
deterministic improved-policy rule below it, completed Q values for the policy target.

One round of sequential halving visits every remaining root action once. Those visits lead into
different subtrees and so do not disturb each other: all of them are walked first and evaluated
together, with the rounds of other games. A search of 32 simulations over 16 actions alone needs
five evaluator calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.game.compile import announced
from ringrift_pipeline.search.errors import SearchError
from ringrift_pipeline.search.pool import (
    BATCH,
    SearchPool,
    SearchResult,
    checked_settings,
)
from ringrift_pipeline.search.stopping import check_stop

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules
    from ringrift_pipeline.search.evaluators import Evaluator


class GumbelSearch:
    """Searches batches of positions of one config.

    The trees are kept between calls, so an instance serves one thread. ``max_batch`` bounds how
    many positions are handed to the evaluator at once. ``settings`` may be any object with the
    attributes of ``SearchSettings``. Raises :class:`SearchError` for settings out of range.
    """

    def __init__(
        self, rules: Rules, evaluator: Evaluator, settings: Any = None, *, max_batch: int = BATCH
    ) -> None:
        self.rules = rules
        self.evaluator = evaluator
        self.settings = checked_settings(settings)
        self.max_batch = int(max_batch)
        if self.max_batch < 1:
            raise SearchError(f"max_batch must be at least 1, got {max_batch}")
        self._pool: SearchPool | None = None

    def pool(self, slots: int, simulations: int) -> SearchPool:
        """A new pool with this search's evaluator and settings, for games that go on and on.

        It remembers evaluations, where the evaluator allows it; :meth:`search` does not, so what
        it finds never depends on what it was asked before.
        """
        return self._new_pool(slots, simulations, cached=True)

    def _new_pool(self, slots: int, simulations: int, cached: bool) -> SearchPool:
        return SearchPool(
            self.rules,
            self.evaluator,
            self.settings,
            slots=slots,
            simulations=simulations,
            max_batch=self.max_batch,
            cached=cached,
        )

    def search(
        self,
        states: np.ndarray,
        seeds: np.ndarray,
        simulations: np.ndarray | int,
        depth: int | None = None,
    ) -> SearchResult:
        """Search ``states`` (G, S) int64; they stay as they are.

        ``seeds`` (G,) uint64: a game's result depends on its own state, seed and simulations
        alone (given an evaluator whose rows do not depend on each other). ``simulations``: one
        number, or (G,) int32, each at least 0. With a ``depth`` (at least 1) the result has a
        readout of the trees, its lines of at most so many decisions.

        Raises :class:`SearchError` for malformed input or a position where the game is over, and
        :class:`EvaluationError` when the evaluator returns a wrong shape or a value that is not
        finite; :class:`SearchStopped` where it is given up (:func:`~.stopping.stoppable`).
        """
        states, seeds, budgets = self._checked(states, seeds, simulations)
        games = len(states)
        pool = self._kept_pool(max(games, 1), int(budgets.max(initial=0)))
        slots = np.arange(games)
        before = pool.evaluations
        with announced("Gumbel search", "search", "gumbel"):
            pool.clear()
            pool.start(slots, states, seeds, budgets)
            while pool.busy:
                check_stop()
                pool.step()
            return pool.take(slots, pool.evaluations - before, depth)

    def _kept_pool(self, slots: int, simulations: int) -> SearchPool:
        kept = self._pool
        if kept is None or kept.size < slots or kept.simulations < simulations:
            kept = self._pool = self._new_pool(slots, simulations, cached=False)
        return kept

    def _checked(
        self, states: np.ndarray, seeds: np.ndarray, simulations: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        states = np.require(states, dtype=np.int64, requirements=("C", "W"))
        if states.ndim != 2 or states.shape[1] != self.rules.state_size:
            raise SearchError(
                f"states must have shape (G, {self.rules.state_size}) for {self.rules.config}, "
                f"got {states.shape}"
            )
        seeds = np.require(seeds, dtype=np.uint64, requirements=("C", "W"))
        if seeds.shape != (len(states),):
            raise SearchError(f"seeds must have shape ({len(states)},), got {seeds.shape}")
        try:
            budgets = np.broadcast_to(np.asarray(simulations, dtype=np.int64), (len(states),))
        except ValueError as error:
            raise SearchError(
                f"simulations must be one number or have shape ({len(states)},), "
                f"got shape {np.shape(simulations)}"
            ) from error
        if (budgets < 0).any():
            raise SearchError(f"simulations must not be negative, got {int(budgets.min())}")
        return states, seeds, budgets

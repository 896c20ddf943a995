"""Compile every kernel of the rooms up to selfplay, once, before several processes need them.

The kernels' code is the same for all configs, so one config's warm-up serves all twelve.
``python -m ringrift_pipeline.selfplay.warm_up`` does it by hand.
"""

from __future__ import annotations

import numpy as np

from ringrift_pipeline.game.compile import announced, is_compiled

MARKER = ("selfplay", "warm_up")


def warm_up(config: str = "square8_2p") -> None:
    """Play a few moves with every player and both kinds of selfplay, unless that was done before; says
    so when it compiles.
    """
    if not is_compiled(*MARKER):
        with announced("the game, search and selfplay kernels", *MARKER):
            _use_everything(config)


def _use_everything(config: str) -> None:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.game import get_rules, kernels, new_game
    from ringrift_pipeline.network import Evaluator, NetworkConfig, RingRiftNetwork
    from ringrift_pipeline.search import GumbelSearch, load_player
    from ringrift_pipeline.selfplay.play import play_heuristic_games, play_search_games
    from ringrift_pipeline.selfplay.stopping import Reporter

    rules = get_rules(config)
    state = new_game(config)
    for spec in ("random", "heuristic", "rollout"):
        player = load_player(spec, config, simulations=2)
        state = state.apply(player.choose(state))
    settings = TrainingConfig.load(
        overrides={
            "selfplay.max_plies": 12,
            "selfplay.full_search_fraction": 0.5,
            "search.simulations": 4,
            "search.cheap_simulations": 2,
        }
    )
    play_heuristic_games(config, 1, 0, settings, Reporter(None, None))
    network = RingRiftNetwork(
        NetworkConfig(blocks=1, channels=8, geometry=rules.geometry, players=rules.players)
    )
    search = GumbelSearch(rules, Evaluator(network, rules, "cpu", threads=1), settings.search)
    play_search_games(config, 1, 0, settings, search, Reporter(None, None))
    row = state.array.copy()
    buffer = np.empty(rules.max_moves, dtype=np.int64)
    kernels.random_playout(rules.constants, row, np.zeros(1, dtype=np.uint64), buffer)
    kernels.ranking_points(rules.constants, row, np.zeros(rules.players))


if __name__ == "__main__":
    warm_up()

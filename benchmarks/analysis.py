"""How many positions of a game the analysis engine answers for, sent together and one by one.

    python benchmarks/analysis.py [--quick] [--json] [--model FOLDER] [--config square8_2p]
        [--visits 64] [--positions 200] [--seed 0]

Every position of games of the heuristic against itself, as ``ringrift analyze`` gets them: the
moves so far, as JSON lines, to a process of its own; wall time from the first query to the last
answer. Sent together they share batches; one by one, each waits for the answer to the one before
it, and its reference is that. What is compiled for each size of batch is compiled before, with
positions of other games: what the engine has seen it remembers.

``--model`` names a model's folder; without it a network of 4 x 32 with fresh weights is asked,
which takes as long. Positions with one legal move are answered without a search, and are not asked
for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringrift_pipeline.game import CONFIGS, new_game
from ringrift_pipeline.network import NetworkConfig, RingRiftNetwork, save_model
from ringrift_pipeline.search import load_player

Query = dict[str, Any]


def queries(config: str, count: int, visits: int, seed: int) -> list[Query]:
    """``count`` positions with a choice, of as many games of the heuristic as that takes."""
    found: list[Query] = []
    while len(found) < count:
        player = load_player("heuristic", config, seed=seed)
        state, moves = new_game(config), []
        while not state.is_terminal and len(found) < count:
            if len(state.legal_moves()) > 1:
                query = {"id": str(len(found)), "config": config, "moves": list(moves)}
                found.append({**query, "maxVisits": visits, "maxMoves": 1})
            move = player.choose(state)
            moves.append(move.to_record())
            state = state.apply(move)
        seed += 1
    return found


class Engine:
    """``ringrift analyze`` with one model, on one core."""

    def __init__(self, config: str, model: Path) -> None:
        command = [sys.executable, "-m", "ringrift_pipeline", "analyze", "--config", config]
        self._process = subprocess.Popen(
            [*command, "--player", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def send(self, asked: Sequence[Query]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(json.dumps(one) + "\n" for one in asked))
        self._process.stdin.flush()

    def hear(self) -> Query:
        """The next answer; exits where it is an error."""
        assert self._process.stdout is not None
        answer: Query = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise SystemExit(f"ringrift analyze: {answer}")
        return answer

    def together(self, asked: Sequence[Query]) -> float:
        """Positions a second."""
        began = time.perf_counter()
        self.send(asked)
        for _ in asked:
            self.hear()
        return len(asked) / (time.perf_counter() - began)

    def one_by_one(self, asked: Sequence[Query]) -> float:
        """Positions a second."""
        began = time.perf_counter()
        for one in asked:
            self.send([one])
            self.hear()
        return len(asked) / (time.perf_counter() - began)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few positions")
    parser.add_argument("--json", action="store_true", help="only the JSON lines (as always)")
    parser.add_argument("--model", type=Path, help="a model's folder")
    parser.add_argument("--config", choices=CONFIGS, default="square8_2p")
    parser.add_argument("--visits", type=int, default=64, help="of a position")
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the games")
    arguments = parser.parse_args()
    count = 24 if arguments.quick else arguments.positions
    first, second, warm = (
        queries(arguments.config, count, arguments.visits, arguments.seed + offset)
        for offset in (0, 1000, 2000)
    )
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            network = RingRiftNetwork(NetworkConfig(blocks=4, channels=32))
            model = save_model(Path(folder) / "model", network)
        engine = Engine(arguments.config, model.resolve())
        try:
            engine.together(warm[:-4])
            engine.one_by_one(warm[-4:])
            alone, together = engine.one_by_one(first), engine.together(second)
        finally:
            engine.close()
    for name, value in (("one by one", alone), ("together", together)):
        claim = (
            f"analysis: {arguments.config}, {arguments.visits} visits, {count} positions, {name}"
        )
        told = {"claim": claim, "value": round(value, 2), "unit": "positions/s"}
        of = {"reference": round(alone, 2), "ratio": round(value / alone, 3), "target": None}
        print(json.dumps({**told, **of}), flush=True)


if __name__ == "__main__":
    main()

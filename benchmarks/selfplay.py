"""How fast selfplay is: the network's share, what the rest costs, two workers, memory, rollouts.

    python benchmarks/selfplay.py [--quick] [--json] [--only PART] [--precision P]
                                  [--backend B] [--model FOLDER] [--memory] [--memory-games N]

Networks have fresh random weights, or one is the trained one of ``--model``, a folder of a loop or
a checkpoint, which alone is measured then; games are square8_2p with the default settings, one
thread. Times are processor times of this process, but for the two workers (wall time): other work
on the machine disturbs them less. Parts (``--only``): network, equal, workers, rollout (with
``--model`` network and rollout); ``--memory`` is not among them, as it plays thousands of games.

- **Selfplay against the bare network call**: positions evaluated a second while a shard is played,
  its thinning end included, over what the network alone does, called again and again with one
  batch of 128 positions encoded beforehand, before and after the shard. Beside it the parts, in
  microseconds a simulation: engine (copying a position, making a move and the forced ones after
  it, listing what comes next; measured by doing just that with the positions of the shard), tree
  (all of search that is neither engine nor evaluation), encoding, inference (the network and the
  look-up of its moves), and recording (choosing the moves, playing them, keeping the decisions).
- **Simulations a second** against the reference project's Gumbel search on one core with its
  network of 9.5 million parameters, 44 to 53 (the ratio is to 53). Beside it the evaluations that a
  simulation costs: fewer than one, as finished games need none and remembered positions none again.
- **What reuse of trees could keep**: of a full search's simulations, the share below the move that
  is then played, in the mean over the same games.
- **Two workers** playing two shards against two processes that know nothing of each other and play
  one each, at the same time; games a second from the first start to the last end.
- **Memory**: resident set after 1,000 and after 5,000 games (or ``--memory-games``), shards of 100.
- **Rollouts**: playouts a second of the rollout player, and N, the playouts it makes in the time of
  64 simulations for one position of one game.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from selfplay_times import BATCH, CONFIG, play
from strength import decisions, seconds_a_move

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.game import get_rules
from ringrift_pipeline.network import (
    Evaluator,
    ModelError,
    NetworkConfig,
    RingRiftNetwork,
    load_model,
)
from ringrift_pipeline.search import NetworkPlayer, RolloutPlayer, SearchSettings

#: Network -> least share of the bare call's speed.
SIZES = {(4, 32): 0.65, (6, 64): 0.85, (6, 96): None}
GAMES = 64  # of the shard
QUICK_SECONDS = 8.0  # of it, where time is short: its thinning end is not reached then
REFERENCE_SIMULATIONS = 53.0
LEAST_SPEEDUP = 50.0
MOST_TREE_AND_ENCODING = 6.0
EQUAL_PARAMETERS = 9.5e6
MEMORY_GAMES = 5000
MEMORY_SETTINGS = {
    "selfplay.games": 100,
    "selfplay.games_per_shard": 100,
    "selfplay.workers": 1,
    "search.simulations": 8,
    "search.cheap_simulations": 4,
}

Claim = dict[str, Any]


def claim(
    name: str,
    value: float,
    unit: str,
    reference: float | None = None,
    target: float | None = None,
    ratio: float | None = None,
) -> Claim:
    """One claim; the ratio is ``value / reference`` unless it is given."""
    if ratio is None and reference is not None:
        ratio = value / reference
    return {
        "claim": name,
        "value": float(f"{value:.5g}"),
        "unit": unit,
        "reference": None if reference is None else float(f"{reference:.5g}"),
        "ratio": None if ratio is None else float(f"{ratio:.4g}"),
        "target": target,
    }


def networks(
    trained: RingRiftNetwork | None,
) -> Iterator[tuple[str, float | None, RingRiftNetwork]]:
    """(name, least share of the bare call's speed, network) of what is to be measured."""
    if trained is None:
        for (blocks, channels), least in SIZES.items():
            yield f"{blocks} x {channels}", least, RingRiftNetwork(NetworkConfig(blocks, channels))
        return
    size = trained.config.blocks, trained.config.channels
    yield f"{size[0]} x {size[1]} trained", SIZES.get(size), trained


def network_part(
    quick: bool, precision: str, backend: str, trained: RingRiftNetwork | None = None
) -> Iterator[Claim]:
    """Selfplay against the bare call, its parts, and the reference's simulations a second."""
    for name, least, model in networks(trained):
        found = play(model, precision, GAMES, QUICK_SECONDS if quick else float("inf"), backend)
        yield claim(
            f"evaluations during selfplay, {name}, {precision}",
            found["evaluations"],
            "positions/s",
            found["bare"],
            least,
        )
        yield claim(f"mean batch, {name}", found["batch"], "positions", BATCH)
        for part in ("engine", "tree", "encoding", "inference", "recording"):
            yield claim(f"{part}, {name}", found[part], "us/simulation")
        both = found["tree"] + found["encoding"]
        most = MOST_TREE_AND_ENCODING
        yield claim(f"tree and encoding, {name}", both, "us/simulation", most, 1.0, most / both)
        yield claim(
            f"simulations, {name}",
            found["simulations"],
            "simulations/s",
            REFERENCE_SIMULATIONS,
            LEAST_SPEEDUP if (model.config.blocks, model.config.channels) == (6, 96) else None,
        )
        yield claim(f"evaluations per simulation, {name}", found["asked"], "evaluations")
        if "kept" in found:  # else no search came to its end
            yield claim(
                f"simulations of a full search below the move played, {name}",
                found["kept"],
                "share",
            )


def equal_part(quick: bool, precision: str, backend: str) -> Iterator[Claim]:
    """Simulations a second with as many parameters as the reference's network has."""
    blocks, channels = 12, 8
    while RingRiftNetwork(NetworkConfig(blocks, channels + 2)).num_parameters <= EQUAL_PARAMETERS:
        channels += 2
    model = RingRiftNetwork(NetworkConfig(blocks, channels))
    found = play(model, precision, GAMES, QUICK_SECONDS if quick else 30.0, backend)
    yield claim(
        f"simulations, {blocks} x {channels} ({model.num_parameters / 1e6:.2f}M parameters)",
        found["simulations"],
        "simulations/s",
        REFERENCE_SIMULATIONS,
    )


# --- two workers ---------------------------------------------------------------------------------
def _prepare(root: Path, games: int, shards: int, seed: int, overrides: dict[str, Any]) -> Any:
    """A store whose champion is a fresh network, and a plan of its selfplay."""
    from ringrift_pipeline.network import save_model
    from ringrift_pipeline.selfplay import plan_generation
    from ringrift_pipeline.store import Store

    store = Store(root)
    settings = TrainingConfig().with_overrides(
        {
            "seed": seed,
            "device": "cpu",
            "selfplay.games": games * shards,
            "selfplay.games_per_shard": games,
            "network.blocks": 4,
            "network.channels": 32,
            **overrides,
        }
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    plan_generation(store, CONFIG, 0, settings, now)
    network = settings.network
    with store.create(CONFIG, 0, "ema_model") as draft:
        shape = NetworkConfig(network.blocks, network.channels, network.value_channels)
        save_model(draft, RingRiftNetwork(shape, seed=1), {})
    store.promote(CONFIG, 0, draft.artefact, {"benchmark": True})
    return store, plan_generation(store, CONFIG, 1, settings, now)


def _rate(artefacts: list[Any]) -> float:
    """Positions a second from the first start to the last end."""
    notes = [artefact.metadata for artefact in artefacts]
    began = min(note["started"] for note in notes)
    ended = max(note["started"] + note["seconds"] for note in notes)
    return sum(note["positions"] for note in notes) / (ended - began)


def workers_part(quick: bool, precision: str, backend: str) -> Iterator[Claim]:
    """Two workers of one plan against two processes on their own, in turns."""
    from ringrift_pipeline.selfplay import play_shards, shard_kind
    from ringrift_pipeline.store import Store

    games = 8 if quick else 64
    search = {"search.precision": precision, "search.backend": backend}
    together, apart = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 if quick else 2):
            store, plan = _prepare(Path(folder) / f"both{turn}", games, 2, turn, search)
            together.append(_rate(play_shards(store, plan, workers=2)))
            roots = [Path(folder) / f"{who}{turn}" for who in ("one", "other")]
            for number, root in enumerate(roots):
                _prepare(root, games, 1, 10 * turn + number, search)
            command = [sys.executable, __file__, "--play-store"]
            running = [subprocess.Popen([*command, str(root)]) for root in roots]
            if any(process.wait() for process in running):
                raise SystemExit("a process on its own failed")
            kind = shard_kind(0)
            apart.append(_rate([Store(root).require(CONFIG, 1, kind) for root in roots]))
    yield claim(
        "two workers against two processes of their own",
        statistics.median(together),
        "positions/s",
        statistics.median(apart),
        0.90,
    )


# --- rollouts ------------------------------------------------------------------------------------
def rollout_part(
    quick: bool, precision: str, backend: str, trained: RingRiftNetwork | None = None
) -> Iterator[Claim]:
    """Playouts a second, and N for every size of network."""
    rows = decisions(CONFIG, 8 if quick else 48)
    playouts = 200 if quick else 400
    rate = playouts / seconds_a_move(RolloutPlayer(CONFIG, playouts=playouts), rows)
    yield claim("playouts of the rollout player", rate, "playouts/s")
    rules = get_rules(CONFIG)
    for name, _, model in networks(trained):
        evaluator = Evaluator(model, rules, "cpu", precision=precision, backend=backend, threads=1)
        player = NetworkPlayer(CONFIG, evaluator, simulations=64, settings=SearchSettings())
        each = seconds_a_move(player, rows)
        yield claim(f"64 simulations for one position, {name}", each * 1e3, "ms")
        yield claim(f"N, playouts in that time, {name}", each * rate, "playouts")


# --- memory --------------------------------------------------------------------------------------
def resident() -> float:
    """Resident set of this process, MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_part(games: int, precision: str, backend: str) -> Iterator[Claim]:
    """Resident set as games go by: real plans, shards written, in this very process."""
    from ringrift_pipeline.selfplay import play_shard

    per_shard = int(MEMORY_SETTINGS["selfplay.games_per_shard"])
    tiny = {"network.blocks": 1, "network.channels": 8, "network.value_channels": 8}
    search = {"search.precision": precision, "search.backend": backend}
    overrides = {**MEMORY_SETTINGS, **tiny, **search}
    first = 0.0
    most = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for played in range(0, games, 1000):
            root = Path(folder) / str(played)
            store, plan = _prepare(root, per_shard, 1000 // per_shard, played, overrides)
            for index in range(len(plan.shards)):
                play_shard(store, plan, index)
            now = resident()
            first = first or now
            most = max(most, now)
            if not (played + 1000) % max(5000, games // 20) or not played:
                yield claim(f"resident set after {played + 1000} games", now, "MiB")
            subprocess.run(["rm", "-r", str(root)], check=True)
    yield claim(
        f"largest resident set from 1000 to {games} games against that after 1000",
        most,
        "MiB",
        first,
        0.98,
        first / most,
    )


PARTS: dict[str, Callable[..., Iterator[Claim]]] = {
    "network": network_part,
    "equal": equal_part,
    "workers": workers_part,
    "rollout": rollout_part,
}
OF_ONE_NETWORK = ("network", "rollout")


def trained_network(folder: Path, parser: argparse.ArgumentParser) -> RingRiftNetwork:
    """The network in ``--model``, which must play the games that are measured."""
    try:
        model = load_model(folder)
    except ModelError as error:
        parser.error(f"--model: {error}")
    if (model.config.geometry, model.config.players) != ("square", get_rules(CONFIG).players):
        parser.error(
            f"--model {folder} is for {model.config.players} players on {model.config.geometry} "
            f"cells: name one of {CONFIG}"
        )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer games; figures are rough")
    parser.add_argument("--json", action="store_true", help="one JSON object a claim")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--backend", default="auto", help="auto, torch or openvino")
    parser.add_argument("--model", type=Path, help="folder of a trained network: only that one")
    parser.add_argument("--memory", action="store_true", help="only the memory, for long")
    parser.add_argument("--memory-games", type=int, default=MEMORY_GAMES, help="games it plays")
    parser.add_argument("--play-store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    how = options.precision, options.backend
    torch.set_num_threads(1)
    if options.play_store:
        from ringrift_pipeline.selfplay import load_plan, play_shard
        from ringrift_pipeline.store import Store

        store = Store(options.play_store)
        play_shard(store, load_plan(store, CONFIG, 1), 0)
        return
    if options.memory:
        runs = [memory_part(options.memory_games, *how)]
    elif options.model:
        chosen = options.only or OF_ONE_NETWORK
        if not set(chosen) <= set(OF_ONE_NETWORK):
            parser.error(f"with --model only {' and '.join(OF_ONE_NETWORK)} are measured")
        model = trained_network(options.model, parser)
        runs = [PARTS[name](options.quick, *how, model) for name in chosen]
    else:
        chosen = options.only or PARTS
        runs = [PARTS[name](options.quick, *how) for name in chosen]
    for run in runs:
        for result in run:
            if options.json:
                print(json.dumps(result), flush=True)
                continue
            line = f"{result['claim']:58s} {result['value']:12,.2f} {result['unit']:14s}"
            if result["ratio"] is not None:
                line += f" {result['ratio']:8.3f} of {result['reference']:,.1f}"
            if result["target"] is not None:
                met = "met" if result["ratio"] >= result["target"] else "MISSED"
                line += f"  (target {result['target']:,.2f}: {met})"
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""How to spend the network evaluations of selfplay: many quick games or fewer well-searched ones.

    python benchmarks/search_budget.py [--data DIR --generation 3] [--config square8_2p] [--quick]
        [--json] [--seeds N] [--games N] [--steps N] [--only NAME,…] [--keep DIR]

One JSON object a budget and measure; a bigger ratio is better, ``target`` 1 is "no worse".

``--data`` names the folder of a loop; without it two small generations are played first, and the
second one is meant. The champion of a generation's plan plays once more, with each budget as many
games as cost the plan's own budget the evaluations of ``--games`` games; every seed plays games of
its own. The plan's parent is trained on each lot of games alone, for the same steps, everything
that is optional off. All are judged by the same games, which that champion plays with `JUDGING`
simulations for every move: by the policy of those searches, and by the outcomes. A budget is
compared with the plan's own, seed by seed; the interval (95%) is that of the mean difference, over
games and over seeds (``evaluation/paired_differences.py``), its verdict beyond doubt among all
differences of the call (Holm). Lots that have been played are kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from learning import (
    ENOUGH,
    NOW,
    PLAIN,
    QUICK,
    SIZES,
    Results,
    compared,
    prepared,
    told,
    with_verdicts,
)
from numpy.typing import NDArray

from ringrift_pipeline.evaluation.processes import work_through
from ringrift_pipeline.game import CONFIGS
from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import Plan, load_plan, plan_generation, play_shards
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import WindowDataset, build_window, open_window
from ringrift_pipeline.training.judging import by_game, by_network, row_losses
from ringrift_pipeline.training.trial import train_trial

JUDGING = 128  # simulations
JUDGES = "the games that judge"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the searches of selfplay may cost.

    Attributes:
        full: simulations of a full search, in parts of the plan's.
        cheap: simulations of a cheap search, likewise.
        share: of the moves that get a full search; None is the plan's.
    """

    full: float = 1.0
    cheap: float = 1.0
    share: float | None = None

    def settings(self, plan: Plan) -> dict[str, Any]:
        """The settings of a plan that change."""
        search, selfplay = plan.settings.search, plan.settings.selfplay
        return {
            "search.simulations": round(search.simulations * self.full),
            "search.cheap_simulations": round(search.cheap_simulations * self.cheap),
            "selfplay.full_search_fraction": self.share or selfplay.full_search_fraction,
        }

    def cost(self, plan: Plan) -> float:
        """Simulations of a move, on the average."""
        changes = self.settings(plan)
        share = changes["selfplay.full_search_fraction"]
        full, cheap = changes["search.simulations"], changes["search.cheap_simulations"]
        return float(share * full + (1.0 - share) * cheap)


OWN = "the budget of the plan"
BUDGETS: dict[str, Budget] = {
    OWN: Budget(),
    "half of the moves full": Budget(share=0.5),
    "every move full": Budget(share=1.0),
    "an eighth of the moves full": Budget(share=0.125),
    "twice the simulations": Budget(full=2.0, cheap=2.0),
    "half the simulations": Budget(full=0.5, cheap=0.5),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: on the games of which budget, with which seed."""

    name: str
    seed: int


def folder(root: Path, name: str, seed: int) -> Path:
    return root / f"{name.replace(' ', '_')}-{seed}"


def play(source: Store, plan: Plan, root: Path, games: int, changes: dict[str, Any]) -> Store:
    """Games of the plan's champion in a folder of their own, kept where they are already there."""
    store = Store(root)
    if plan.champion is None:
        raise SystemExit(f"generation {plan.generation:04d} was played by the heuristic")
    if store.champion(plan.config) is None:
        model = open_model(source, plan.champion)
        with store.create(plan.config, 0, model.kind, metadata=model.metadata) as draft:
            for name in model.files:
                shutil.copy2(model.file(name), draft / name)
        store.promote(plan.config, 0, draft.artefact, {"benchmark": True})
    settings = plan.settings.with_overrides(
        {
            **changes,
            "selfplay.games": games,
            "selfplay.games_per_shard": max(1, -(-games // 8)),
            "selfplay.opponent_fraction": 0.0,
        }
    )
    made = plan_generation(store, plan.config, 1, settings, NOW)
    play_shards(store, made)
    build_window(store, made)
    return store


def work(source: Path, plan: Plan, root: Path, steps: int, job: Job) -> NDArray[np.float64]:
    """Train the plan's parent on one lot of games and judge it: (2, G) losses."""
    torch.set_num_threads(1)
    assert plan.parent is not None
    store = Store(folder(root, job.name, job.seed))
    own = load_plan(store, plan.config, 1)
    window = open_window(build_window(store, own).path)
    changes = {
        **PLAIN,
        "training.augmentation": True,
        "training.sample_reuse": ENOUGH,
        "training.max_steps": steps,
    }
    parent = load_model(source / plan.parent["path"])
    model = train_trial(own, window, changes, job.seed, parent=parent).best_model()
    judges = Store(folder(root, JUDGES, 0))
    judging = open_window(build_window(judges, load_plan(judges, plan.config, 1)).path)
    rows = np.arange(len(judging.game))
    losses = row_losses(by_network(model), WindowDataset(judging), rows)
    return np.stack([by_game(losses.policy, judging.game), by_game(losses.value, judging.game)])


def claims(arguments: argparse.Namespace, root: Path, say: Any) -> Iterator[dict[str, Any]]:
    config, seeds = arguments.config, 2 if arguments.quick else arguments.seeds
    games, steps = (24, 20) if arguments.quick else (arguments.games, arguments.steps)
    source, generation = Store(arguments.data or root / "source"), arguments.generation
    if arguments.data is None:
        generation = 1
        if generation not in source.generations(config):
            prepared(source, config, SIZES | (QUICK if arguments.quick else {}))
    plan = load_plan(source, config, generation)
    names = [OWN] + [
        name for name in BUDGETS if name != OWN and any(part in name for part in arguments.only)
    ]
    root = root / f"{config}-{generation:04d}-{games}"  # what is kept is of these alone
    every = {"search.simulations": JUDGING, "selfplay.full_search_fraction": 1.0}
    say(f"{JUDGES}: {games // 2}, {JUDGING} simulations")
    play(source, plan, folder(root, JUDGES, 0), games // 2, {**every, "seed": seeds})
    jobs = [Job(name, seed) for name in names for seed in range(seeds)]
    lots: dict[str, int] = {}
    for number, job in enumerate(jobs, start=1):
        budget = BUDGETS[job.name]
        lots[job.name] = round(games * BUDGETS[OWN].cost(plan) / budget.cost(plan))
        say(f"played {number}/{len(jobs)}: {job.name}, {lots[job.name]} games, seed {job.seed}")
        changes = {**budget.settings(plan), "seed": job.seed}
        play(source, plan, folder(root, job.name, job.seed), lots[job.name], changes)
    desk = Results(len(jobs), say)
    once = partial(work, source.root, plan, root, steps)
    work_through(jobs, once, os.cpu_count() or 1, desk, silence=math.inf)

    def losses(name: str) -> NDArray[np.float64]:
        return np.stack([desk.of[job] for job in jobs if job.name == name], axis=1)

    found: list[dict[str, Any]] = []
    for name in names[1:]:
        about = {"games": lots[name], "settings": BUDGETS[name].settings(plan)}
        found += [claim | about for claim in compared(name, losses(name), losses(OWN))]
    yield from with_verdicts(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of a loop; default: made for this")
    parser.add_argument("--quick", action="store_true", help="24 games, 20 steps, 2 seeds")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--config", choices=CONFIGS, default="square8_2p")
    parser.add_argument("--generation", type=int, default=3, help="whose champion plays")
    parser.add_argument("--seeds", type=int, default=4, help="paired seeds of each budget")
    parser.add_argument("--games", type=int, default=500, help="a seed, with the plan's budget")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a training")
    parser.add_argument("--keep", type=Path, help="folder for the games; default: a scratch one")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[""],
        help="only budgets whose names contain one of these",
    )
    told(parser, lambda given, scratch, say: claims(given, given.keep or scratch, say))


if __name__ == "__main__":
    main()

"""Does the same seed give the same bytes: training resumed anywhere, whole loops, any workers?

    python benchmarks/reproducibility.py [--quick] [--json] [--only resume|loops|workers]

- **Resume**: a training is stopped after each of a hundred different numbers of steps, chosen by
  chance, its state saved to disk and loaded into a fresh training, which goes on to the end. Counted
  are the bytes in which weights (the last, the best averaged), optimizer, sampler, miner, averages
  and random states differ from those of the training that was never stopped.
- **Loops**: ten loops of two generations (selfplay, scores, mining, training, averaging, ensemble,
  calibration, evaluation, promotion) with one seed, each in a folder and a process of its own, and
  with another ``PYTHONHASHSEED``, on which the order of sets depends. Counted are the
  files that are not the same in all. Artefacts' folders are named by the moment of landing, and
  files that name such folders, or say how long something took, cannot be the same: they are
  compared with these replaced, and the report lists them.
- **Workers**: the shards of a generation that a network plays, by 1, 2 and 3 processes; counted are
  the shards that differ.

The rest runs in this process but for the workers' selfplay; that killed processes resume alike is
what ``tests/faults`` shows. The reference is no difference at all. ``--quick`` takes 5 stops, 2
loops and 2 numbers of workers. On the CPU; devices add in an order of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from ringrift_pipeline import evaluation, training
from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.selfplay import Interrupted, Plan, collect, plan_generation, play_shards
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.store.kinds import shard_kind

CONFIG = "square8_2p"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STEPS = 120
SETTINGS = {
    "seed": 11,
    "device": "cpu",
    "selfplay.games": 18,
    "selfplay.games_per_shard": 6,
    "selfplay.parallel_games": 6,
    "selfplay.workers": 1,
    "selfplay.full_search_fraction": 0.5,
    "search.simulations": 8,
    "search.cheap_simulations": 4,
    "search.max_considered": 4,
    "network.blocks": 2,
    "network.channels": 8,
    "network.value_channels": 8,
    "training.batch_size": 32,
    "training.max_steps": 24,
    "training.checkpoint_every": 10,
    "training.holdout_fraction": 0.3,
    "training.threads": 1,
    "training.precision": "float32",
    "quality.enabled": True,
    "mining.enabled": True,
    "mining.min_samples_before_mining": 64,
    "schedule.warmup_steps": 4,
    "calibration.min_games": 2,
    "calibration.bootstrap": 20,
    "calibration.bins": 5,
    "evaluation.games": 6,
    "evaluation.max_games": 6,
    "evaluation.simulations": 2,
    "evaluation.anchor_games": 2,
}
LONG_TRAINING = {
    "training.batch_size": 16,
    "training.max_steps": STEPS,
    "training.sample_reuse": 8.0,
    "training.early_stopping_patience": 0,
    "training.checkpoint_every": 1000,  # the stops alone save
}
# An artefact's folder is named by the moment at which it landed.
FOLDER = re.compile(rb"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}")
# How long something took, and what is reckoned from it.
CLOCK = re.compile(r"seconds|_per_s$|^started$|^created")


def told(text: str) -> None:
    """Say how far it is, beside the claims."""
    print(text, file=sys.stderr, flush=True)


def planned(store: Store, generation: int, **changes: Any) -> Plan:
    settings = TrainingConfig().with_overrides(SETTINGS | changes)
    return plan_generation(store, CONFIG, generation, settings, NOW + timedelta(hours=generation))


def work(store: Store, plan: Plan) -> None:
    """All of a generation; its model becomes the champion."""
    play_shards(store, plan)
    collect(store, plan)
    training.score_games(store, plan)
    training.mine_hard_examples(store, plan)
    training.train(store, plan)
    training.average(store, plan)
    training.build_ensemble(store, plan)
    training.calibrate(store, plan)
    evaluation.evaluate(store, plan)
    model = store.require(CONFIG, plan.generation, "ema_model")
    store.promote(CONFIG, plan.generation, model, {"why": "every generation's is"})


def claim(text: str, differing: int, of: int, unit: str, **more: Any) -> dict[str, Any]:
    """One claim; the ratio is the share that does not differ, 1 the least acceptable."""
    return {
        "claim": f"reproducibility: {text}",
        "value": differing,
        "unit": unit,
        "reference": 0,
        "ratio": 1.0 if not differing else min(0.999, 1.0 - differing / max(1, of)),
        "target": 1.0,
        **more,
    }


# --- resume -------------------------------------------------------------------------------------


def differing_bytes(one: Artefact, other: Artefact) -> int:
    """Bytes in which the files of two artefacts differ; a file of one alone counts whole."""
    total = 0
    for name in one.files.keys() | other.files.keys():
        texts = [
            (artefact.path / name).read_bytes() if name in artefact.files else b""
            for artefact in (one, other)
        ]
        if texts[0] != texts[1]:
            total += sum(a != b for a, b in zip_longest(*texts))
    return total


def after(steps: int) -> Callable[[], bool]:
    """``should_stop`` of a training, which asks once before every step."""
    left = steps

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return should_stop


def resume(root: Path, stops: int) -> Iterator[dict[str, Any]]:
    store = Store(root)
    plan = planned(store, 0, **LONG_TRAINING)
    play_shards(store, plan)
    training.score_games(store, plan)
    training.mine_hard_examples(store, plan)
    whole = training.train(store, plan, resume="never")
    steps = whole.metadata["train/steps"]
    size = sum(entry["size"] for entry in whole.files.values())
    chosen = random.Random(1).sample(range(1, steps), min(stops, steps - 1))
    differing, wrong = 0, []
    for number, stop in enumerate(chosen, start=1):
        with contextlib.suppress(Interrupted):
            training.train(store, plan, resume="never", should_stop=after(stop))
        state = store.require(CONFIG, 0, "training_state")
        if state.metadata["step"] != stop:
            raise RuntimeError(f"stopped after {state.metadata['step']} steps, not {stop}")
        resumed = training.train(store, plan, resume=state.path)
        if resumed.metadata["resumed_from_step"] != stop:
            raise RuntimeError(f"resumed from {resumed.metadata['resumed_from_step']}, not {stop}")
        count = differing_bytes(whole, resumed)
        differing += count
        wrong += [stop] if count else []
        told(f"{number} of {len(chosen)} stops, {differing} bytes differ")
    yield claim(
        f"bytes that differ after training of {steps} steps resumed from {len(chosen)} random "
        f"steps ({size:,} bytes each: weights, averages, optimizer, sampler, miner)",
        differing,
        size * len(chosen),
        "bytes",
        note=f"stops that differ: {wrong or 'none'}",
    )


# --- whole loops --------------------------------------------------------------------------------


def without_time(value: Any) -> Any:
    """JSON without what the clock decides."""
    if isinstance(value, dict):
        return {name: without_time(item) for name, item in value.items() if not CLOCK.search(name)}
    return [without_time(item) for item in value] if isinstance(value, list) else value


def hashes(root: Path) -> dict[str, tuple[str, str, str]]:
    """Generation, kind and file -> hashes as it is, without names of folders, and without times."""
    store = Store(root)
    found = {}
    for generation in store.generations(CONFIG):
        for kind in store.kinds(CONFIG, generation):
            artefact = store.current(CONFIG, generation, kind)
            for name in artefact.files if artefact else ():
                data = (artefact.path / name).read_bytes()  # type: ignore[union-attr]
                named = FOLDER.sub(b"*", data)
                timeless = named
                if name.endswith(".json"):
                    timeless = json.dumps(without_time(json.loads(named))).encode()
                found[f"{generation:04d}/{kind}/{name}"] = tuple(
                    hashlib.sha256(text).hexdigest() for text in (data, named, timeless)
                )
    return found  # type: ignore[return-value]


def unlike(made: list[dict[str, tuple[str, str, str]]]) -> int:
    """Loops whose files, times left out, are not those of the first."""
    timeless = [{name: forms[2] for name, forms in one.items()} for one in made]
    return sum(one != timeless[0] for one in timeless)


def one_loop(folder: Path) -> None:
    """A loop of two generations in a folder; prints its `hashes`."""
    store = Store(folder)
    for generation in (0, 1):
        work(store, planned(store, generation))
    print(json.dumps(hashes(folder)))


def loop_apart(folder: Path, hash_seed: int) -> dict[str, tuple[str, str, str]]:
    """`one_loop` in a fresh process, its hashes."""
    done = subprocess.run(
        [sys.executable, __file__, "--one-loop", str(folder)],
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return {name: tuple(forms) for name, forms in found.items()}  # type: ignore[misc]


def loops(root: Path, count: int) -> Iterator[dict[str, Any]]:
    made = []
    for number in range(count):
        folder = root / f"loop-{number}"
        made.append(loop_apart(folder, hash_seed=number + 1))
        shutil.rmtree(folder)
        told(f"{number + 1} of {count} loops, {unlike(made)} unlike the first")
    names = sorted(set().union(*made))
    differ: list[list[str]] = [[], [], []]
    for name in names:
        entries = [one.get(name, ("absent",) * 3) for one in made]
        for form in range(3):
            if len({entry[form] for entry in entries}) > 1:
                differ[form].append(name)
    yield claim(
        f"files that differ between {count} loops of two generations and one seed, each in a process "
        f"with a hash seed of its own, names of folders and times left out; {len(names)} files each",
        len(differ[2]),
        len(names),
        "files",
        note=f"they are: {', '.join(differ[2]) or 'none'}",
        name_folders=sorted(set(differ[0]) - set(differ[1])),
        tell_the_time=sorted(set(differ[1]) - set(differ[2])),
    )


# --- workers ------------------------------------------------------------------------------------


def workers(root: Path, numbers: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    digests: list[list[str]] = []
    first = root / "first"
    store = Store(first)
    work(store, planned(store, 0))
    for number in numbers:
        store = Store(shutil.copytree(first, root / f"workers-{number}"))
        plan = planned(store, 1)
        play_shards(store, plan, workers=number)
        shards = [store.require(CONFIG, 1, shard_kind(i)) for i in range(len(plan.shards))]
        digests.append([shard.files["shard.arrow"]["sha256"] for shard in shards])
    differing = sum(len(set(of)) > 1 for of in zip(*digests, strict=True))
    text = ", ".join(map(str, numbers))
    yield claim(
        f"shards that differ when {text} workers play the {len(digests[0])} of a generation",
        differing,
        len(digests[0]),
        "shards",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 stops, 2 loops, 2 workers")
    parser.add_argument("--json", action="store_true", help="only the JSON lines")
    parser.add_argument("--stops", type=int, help="stops of the resumed training (default: 100)")
    parser.add_argument("--loops", type=int, help="whole loops (default: 10)")
    parser.add_argument("--only", choices=("resume", "loops", "workers"), help="one of the three")
    parser.add_argument("--one-loop", type=Path, metavar="DIR", help="one loop in DIR; its hashes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one_loop is not None:
        one_loop(arguments.one_loop)
        return
    quick = arguments.quick
    parts: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
        "resume": lambda root: resume(root, arguments.stops or (5 if quick else 100)),
        "loops": lambda root: loops(root, arguments.loops or (2 if quick else 10)),
        "workers": lambda root: workers(root, (1, 2) if quick else (1, 2, 3)),
    }
    missed = 0
    for name, part in parts.items():
        if arguments.only not in (None, name):
            continue
        if not arguments.json:
            print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for made in part(Path(folder)):
                print(json.dumps(made), flush=True)
                missed += made["value"] != 0
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()

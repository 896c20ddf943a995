"""Playing one shard of a plan: what a worker process, or a step of the pipeline, calls."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.selfplay.plan import Plan, open_model
from ringrift_pipeline.selfplay.stopping import Progress, Reporter, ShouldStop
from ringrift_pipeline.store.kinds import made_by

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store


def play_shard(
    store: Store,
    plan: Plan,
    index: int,
    *,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Artefact:
    """Play shard ``index`` of a plan and land it; a verified shard of the plan is returned.

    The file ``shard.arrow`` depends on the plan and the machine alone. Metadata holds ``games``,
    ``positions``, and when and how long it was played (``started`` in Unix seconds, ``seconds``).

    Raises
    ------
    PlanError
        if the plan has no such shard, or its champion's or opponent's files are not those it names.
    NonFiniteOutputError
        if a model gives a policy or value that is not finite, naming model, game and position;
        nothing of the shard is kept.
    Interrupted
        if ``should_stop`` says so; nothing of the shard is kept.
    """
    plan.shard(index)
    existing = finished_shard(store, plan, index)
    if existing is not None:
        return existing
    return play_with(store, plan, index, Reporter(progress, should_stop))


def finished_shard(store: Store, plan: Plan, index: int) -> Artefact | None:
    """The verified shard of this plan and this version, or None, also for one that landed without
    its games; a corrupt one goes to the store's quarantine.
    """
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, shard_kind
    from ringrift_pipeline.store import CorruptArtefactError

    try:
        artefact = store.current(plan.config, plan.generation, shard_kind(index))
    except CorruptArtefactError:
        return None
    if artefact is None or artefact.metadata.get("plan") != plan.digest:
        return None
    return artefact if up_to_date(artefact) and SHARD_FILE in artefact.files else None


def missing_shards(
    store: Store,
    plan: Plan,
    *,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> list[int]:
    """The indices of a plan's shards that are still to be played, in order; all others verify.

    Raises Interrupted if ``should_stop`` says so.
    """
    from ringrift_pipeline.selfplay.shards import shard_kind

    reporter, missing = Reporter(progress, should_stop), []
    there = set(store.kinds(plan.config, plan.generation))  # one question for all of them
    for index in range(len(plan.shards)):
        reporter.check(f"stopped at the look for shard {index}; run again to go on")
        if shard_kind(index) not in there or finished_shard(store, plan, index) is None:
            missing.append(index)
        told = f"{len(missing)} of {index + 1} shards to play"
        reporter.report(index + 1, len(plan.shards), told)
    return missing


def up_to_date(artefact: Artefact) -> bool:
    """Whether a shard, or the index of shards, was made by this version of selfplay."""
    return artefact.metadata.get("code_version") == made_by("selfplay_shards").get("code_version")


def play_with(
    store: Store, plan: Plan, index: int, reporter: Reporter, digest: str | None = None
) -> Artefact:
    """Play and land a shard, whatever is there already.

    With a ``digest`` it takes the place of one that was played before and had that: where it would
    have another ShardError is raised, and nothing lands.
    """
    from ringrift_pipeline.network import NonFiniteOutputError
    from ringrift_pipeline.selfplay.play import Opponent, play_heuristic_games, play_search_games
    from ringrift_pipeline.selfplay.shards import (
        SHARD_FILE,
        ShardError,
        shard_kind,
        shard_metadata,
        write_shard,
    )

    shard = plan.shard(index)
    began, start = time.time(), time.monotonic()
    arguments = (plan.config, int(shard["games"]), int(shard["seed"]), plan.settings)
    metadata = shard_metadata(plan, index)
    if plan.champion is None:
        decisions, games = play_heuristic_games(*arguments, reporter)
    else:
        search = _search(store, plan, plan.champion)
        met = shard.get("opponent")
        opponent = met and Opponent(_search(store, plan, met), met["games"], met["first_seat"])
        try:
            decisions, games = play_search_games(*arguments, search, reporter, opponent)
        except NonFiniteOutputError as error:
            where = f"{plan.config} generation {plan.generation:04d} shard {index:04d}"
            raise NonFiniteOutputError(f"{where}, {error}", error.rows) from None
    with store.create(plan.config, plan.generation, shard_kind(index)) as draft:
        write_shard(draft / SHARD_FILE, decisions, games, metadata)
        if digest is not None and draft.digest != digest:
            raise ShardError("this version, or this machine, plays other games")
        draft.metadata.update(
            {
                "plan": plan.digest,
                "games": len(games.plies),
                "positions": len(decisions),
                "player": metadata["player"],
                "model": metadata["model"],
                "model_generation": metadata["model_generation"],
                "opponent": metadata.get("opponent"),
                "started": began,
                "seconds": time.monotonic() - start,
                **made_by("selfplay_shards"),
            }
        )
        if digest is not None:  # how old these games are must not be forgotten
            draft.metadata["first_played"] = plan.created
    _give_memory_back()
    return draft.artefact


def _give_memory_back() -> None:
    """Let glibc return what it holds free: else its heap grows from shard to shard, by holes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc has no such function
            ctypes.CDLL(None).malloc_trim(0)


def _search(store: Store, plan: Plan, reference: dict[str, Any]) -> Any:
    """The network search of the model that the plan refers to."""
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import Evaluator, backend_on, load_model
    from ringrift_pipeline.search import GumbelSearch

    rules = get_rules(plan.config)
    artefact = open_model(store, reference)
    model = load_model(artefact.path)
    # One thread a worker: sums round alike however many workers share the machine.
    device, precision = plan.settings.device, plan.precision
    name = f"the model of generation {artefact.generation:04d} ({artefact.path})"
    backend = backend_on(device, plan.backend)
    evaluator = Evaluator(
        model, rules, device, precision=precision, backend=backend, threads=1, name=name
    )
    return GumbelSearch(rules, evaluator, plan.settings.search)

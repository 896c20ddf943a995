"""One generation's training in several processes: who prepares, who trains, who lands."""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.selfplay.stopping import Progress, ShouldStop
from ringrift_pipeline.store import Artefact, MissingArtefactError, Store

if TYPE_CHECKING:
    from ringrift_pipeline.training.processes import Member

# What the first process tells the others: what the run reads, as JSON; the checkpoint's folder.
_SOURCES, _LANDED = "sources", "landed"


def torchrun_rank() -> int | None:
    """This process's rank among several that torchrun started; None elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return int(os.environ["RANK"])


def in_processes(
    store: Store,
    plan: Plan,
    resume: str | Path,
    sources: dict[str, Artefact],
    existing: Artefact | None,
    progress: Progress | None,
    should_stop: ShouldStop | None,
) -> Artefact | None:
    """Train in as many processes as torchrun started, or else as ``training.processes`` says.

    Called by the process that prepares: torchrun's first, or the one that starts the others.

    Parameters
    ----------
    sources:
        What the run reads, by its role.
    existing:
        The checkpoint that is there already, so that there is nothing to train.

    Returns
    -------
    The checkpoint, ``existing`` if that is one; None where one process is to train, this one.
    """
    given = (
        str(store.root),
        plan,
        resume,
        {role: str(artefact.path) for role, artefact in sources.items()},
    )
    if torchrun_rank() is not None:
        from ringrift_pipeline.training.processes import by_torchrun

        member = by_torchrun(progress, should_stop)
        member.tell(_SOURCES, json.dumps(None if existing else given[-1]))
        if existing is None:
            return store.open(_train(member, *given), verify=False)
        member.tell(_LANDED, str(existing.path))
    if existing is not None:
        return existing
    from ringrift_pipeline.training.processes import process_count, run_together

    count = process_count(plan.settings)
    if count == 1:
        return None
    landed = run_together(count, _train, *given, progress=progress, should_stop=should_stop)
    return store.open(landed, verify=False)


def beside(
    store: Store, plan: Plan, resume: str | Path, should_stop: ShouldStop | None
) -> Artefact:
    """Train beside the first of the processes that torchrun started, once that has prepared it."""
    from ringrift_pipeline.training.processes import by_torchrun

    member = by_torchrun(None, should_stop)
    paths = json.loads(member.hear(_SOURCES))
    if paths is None:
        return _seen(store, member, "checkpoint", member.hear(_LANDED))
    return store.open(_train(member, str(store.root), plan, resume, paths), verify=False)


def _train(member: Member, root: str, plan: Plan, resume: str | Path, paths: dict[str, str]) -> str:
    """Each process's part; the folder of the checkpoint that the first one lands."""
    from ringrift_pipeline.training.loop import train_from

    store = Store(root)
    # a state that is being written: whoever started this process cannot know its name
    member.leaving.append(partial(store.remove_own, plan.config))
    sources = {role: _seen(store, member, role, path) for role, path in paths.items()}
    with member.joined(plan.settings) as (replicas, device):
        landed = train_from(
            store,
            plan.on_device(device),
            resume,
            sources,
            replicas,
            member.progress,
            member.should_stop,
        )
        if landed is not None:
            member.tell(_LANDED, str(landed.path))
        return member.hear(_LANDED, patient=True)


def _seen(store: Store, member: Member, role: str, path: str) -> Artefact:
    """What the first process names. Raises ProcessesError where this one cannot see it."""
    from ringrift_pipeline.training.processes import ProcessesError

    try:
        return store.open(path, verify=False)
    except MissingArtefactError as error:
        if torchrun_rank() is None:  # ours are of one machine
            raise
        raise ProcessesError(
            f"training process {member.rank} on {socket.gethostname()} cannot see {path}, the "
            f"{role.replace('_', ' ')} that the first one names: processes on several machines need one data "
            "root, a folder that they share under the same path, and no bucket, for a window stays on the "
            "machine that made it. Share the folder and unset RINGRIFT_BUCKET, or start torchrun on one "
            "machine alone"
        ) from error


__all__ = ["beside", "in_processes", "torchrun_rank"]

"""One batch over several processes: what each tells the others of its share, and the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ringrift_pipeline.enhancements.replicas import ReplicaError, Replicas
from ringrift_pipeline.enhancements.training_batch import TrainingBatch


@dataclass(frozen=True)
class BatchShare:
    """What a process tells of its share of a batch.

    Attributes:
        size: samples.
        names: of the batch's entries.
        indices, facts: as in ``TrainingBatch``, of the share.
        refused, rows: why this process's samples cannot be trained on, and the data-set rows where
            the fault lies.
        failed: the error that ends this process.
    """

    size: int = 0
    names: tuple[str, ...] = ()
    indices: np.ndarray | None = None
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    refused: str = ""
    rows: tuple[int, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class RefusedBatch:
    """Why a batch is left out by all: what a process found, and the data-set rows it names."""

    what: str
    rows: tuple[int, ...]


def failure(text: str) -> BatchShare:
    """What a process tells that ends with an error."""
    return BatchShare(failed=text)


def refuse_share(replicas: Replicas, what: str, rows: tuple[int, ...]) -> RefusedBatch:
    """Tell the others that this process cannot use its share; returns what all found.

    Raises:
        ReplicaError: another process has failed.
    """
    found = _told(replicas, BatchShare(refused=what, rows=rows))
    assert isinstance(found, RefusedBatch)
    return found


def join_shares(
    replicas: Replicas, batch: TrainingBatch, size: int
) -> tuple[TrainingBatch, list[int]] | RefusedBatch:
    """The whole batch that this process has a share of, ``size`` samples, and every share's size.

    Its ``indices`` and ``facts`` are of all samples, the share of rank 0 first; its tensors and
    weights stay this process's, and ``share`` says which samples they are.

    Raises:
        ReplicaError: another process has failed.
        ValueError: the shares have different entries; in all processes.
    """
    names = tuple(sorted(str(name) for name, part in batch.tensors.items() if part is not None))
    told = _told(replicas, BatchShare(size, names, batch.indices, batch.facts))
    if isinstance(told, RefusedBatch):
        return told
    if any(share.names != told[0].names for share in told):
        odd = sorted({name for share in told for name in share.names} - set(_shared(told)))
        raise ValueError(f"only some processes' shares of the batch have {', '.join(odd)}")
    sizes = [share.size for share in told]
    first = sum(sizes[: replicas.rank])
    indices = None
    if batch.indices is not None:
        indices = np.concatenate([share.indices for share in told if share.indices is not None])
    facts = {name: np.concatenate([share.facts[name] for share in told]) for name in batch.facts}
    whole = replace(batch, indices=indices, facts=facts, share=slice(first, first + size))
    return whole, sizes


def _shared(told: list[BatchShare]) -> tuple[str, ...]:
    return tuple(name for name in told[0].names if all(name in share.names for share in told))


def _told(replicas: Replicas, mine: BatchShare) -> list[BatchShare] | RefusedBatch:
    told = replicas.exchange(mine)
    for rank, share in enumerate(told):
        if share.failed:
            raise ReplicaError(f"training process {rank} failed: {share.failed}")
    refused = [share for share in told if share.refused]
    if not refused:
        return told
    reasons = dict.fromkeys(share.refused for share in refused)
    rows = sorted({row for share in refused for row in share.rows})
    return RefusedBatch("; ".join(reasons), tuple(rows))


__all__ = ["BatchShare", "RefusedBatch", "failure", "join_shares", "refuse_share"]

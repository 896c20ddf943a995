"""Processes that train one model together, each with a replica of it and a share of every batch.

Built on ``torch.distributed``: who starts the processes, such as ``torchrun``, has them joined by
``init_process_group``; :class:`Replicas` is what training asks of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_LOST = "another training process ended or cannot be reached; the first error is its own"


class ReplicaError(RuntimeError):
    """This process cannot go on for what another one did: it failed, ended, or trains otherwise."""


class Replicas:
    """The processes that train together; one alone where no process group is named.

    What depends on all of a batch comes from :meth:`gather` and :meth:`exchange`, with the same
    bits for every process, in the order of ranks: so all decide alike, and stay alike.

    All methods but :meth:`share` and :meth:`connected` are collective: every process calls them,
    in the same order. They raise ReplicaError if a process is lost.

    Args:
        rank: of this process, from 0.
        count: processes; with 1 nothing is communicated.
        group: their process group, with a backend for tensors on the CPU (``gloo``, or
            ``cpu:gloo,cuda:nccl``); None for the default one.

    Raises:
        ValueError: ``rank`` is not one of ``count``.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, group: dist.ProcessGroup | None = None
    ) -> None:
        if not 0 <= rank < count:
            raise ValueError(f"rank must lie in 0..{count - 1}, got {rank}")
        self.rank = rank
        self.count = count
        self._group = group

    @classmethod
    def of_group(cls, group: dist.ProcessGroup | None = None) -> Replicas:
        """The processes of a ``torch.distributed`` group; None for the default one."""
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def alone(self) -> bool:
        """Whether there is but one process."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """Which of ``size`` samples are this process's: runs as equal as can be, by rank."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def exchange(self, value: T) -> list[T]:
        """Every process's value, by rank; any that pickle takes, on the host."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        with self.connected():
            dist.all_gather_object(found, value, self._group)
        return found

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.alone:
            return flag
        flags = torch.tensor([int(flag)])
        with self.connected():
            dist.all_reduce(flags, dist.ReduceOp.MAX, self._group)
        return bool(flags)

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` gives the first process; the others do not call it.

        Raises:
            ReplicaError: ``make`` failed, elsewhere than here; the first process raises its error.
        """
        if self.alone:
            return make()
        made: tuple[Any, str] = (None, "")
        if self.first:
            with self.failures_told(lambda text: (None, text)):
                made = (make(), "")
        value, failure = self.exchange(made)[0]
        if failure:
            raise ReplicaError(f"training process 0 failed: {failure}")
        return value

    @contextlib.contextmanager
    def failures_told(self, as_value: Callable[[str], Any]) -> Iterator[None]:
        """An error within goes on, once the others, who are at :meth:`exchange`, have been told.

        Args:
            as_value: what to tell them, from the error's kind and text.
        """
        try:
            yield
        except Exception as error:
            if not self.alone and not isinstance(error, ReplicaError):
                with contextlib.suppress(ReplicaError):
                    self.exchange(as_value(f"{type(error).__name__}: {error}"))
            raise

    def gather(self, columns: Tensor, sizes: Sequence[int]) -> Tensor:
        """(K, B) of all processes side by side, by rank.

        Args:
            columns: (K, ``sizes[rank]``), K and dtype alike everywhere, without a graph.
            sizes: columns of each process; their sum is B.
        """
        if self.alone:
            return columns
        padded = columns.new_zeros((columns.shape[0], max(sizes)))
        padded[:, : columns.shape[1]] = columns
        found = [torch.empty_like(padded) for _ in sizes]
        with self.connected():
            dist.all_gather(found, padded, self._group)
        return torch.cat([part[:, :size] for part, size in zip(found, sizes, strict=True)], dim=1)

    def total(self, values: Tensor) -> Tensor:
        """The sum of the processes' tensors, of one shape and dtype; a copy."""
        total = values.clone()
        if not self.alone:
            with self.connected():
                dist.all_reduce(total, dist.ReduceOp.SUM, self._group)
        return total

    def check_alike(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to go on with replicas that have drifted apart, if by a bit.

        Raises:
            ReplicaError: naming ``what`` differs, and in which processes.
        """
        if self.alone:
            return
        hashed = hashlib.sha256()
        for name, tensor in tensors.items():
            hashed.update(name.encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            hashed.update(flat.view(torch.uint8).numpy().tobytes())
        found = self.exchange(hashed.hexdigest())
        odd = [str(rank) for rank, digest in enumerate(found) if digest != found[0]]
        if odd:
            raise ReplicaError(
                f"{what} of training process {', '.join(odd)} differs from that of process 0: "
                "train on devices of one kind, with the same versions of torch"
            )

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are the mean over processes; itself where there is one.

        Its parameters and buffers become the first process's.

        Raises:
            ValueError: batch normalisation, whose statistics would be those of a share.
        """
        if self.alone:
            return module
        for name, part in module.named_modules():
            norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
            if norm and not isinstance(part, nn.SyncBatchNorm):
                raise ValueError(
                    f"{name} normalises batches, of which each process sees its share alone: "
                    "convert the model with nn.SyncBatchNorm.convert_sync_batchnorm"
                )
        # no collectives in the forward pass: a process may refuse its share of a batch
        known = inspect.signature(DistributedDataParallel.__init__).parameters  # as of this torch
        syncing = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        quiet: dict[str, Any] = {syncing: False, "process_group": self._group}
        with self.connected():
            return DistributedDataParallel(module, **quiet)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Around communication, or a backward pass of :meth:`parallel`: a lost process is named so."""
        try:
            yield
        except ReplicaError:
            raise
        except RuntimeError as error:
            if self.alone or isinstance(error, torch.OutOfMemoryError) or not _of_network(error):
                raise
            raise ReplicaError(f"{_LOST} ({' '.join(str(error).split())[:300]})") from error


def _of_network(error: RuntimeError) -> bool:
    """Whether it comes of communication: gloo raises nothing more special than RuntimeError."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        name in text for name in ("gloo", "nccl", "connection", "timed out", "processgroup")
    )


__all__ = ["ReplicaError", "Replicas"]

"""The network and the look-up of its moves on a device: one launch a batch where it is CUDA.

A small network is some sixty kernels of a few microseconds each, which the processor cannot
launch as fast as the device runs them. So for every size of batch the whole way, from pinned
memory to the device, through the network and back, is recorded once as a CUDA graph and then
replayed. Sizes are rounded up to few different ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ringrift_pipeline.network.board_network import BoardNetwork
from ringrift_pipeline.network.model import PolicyHead
from ringrift_pipeline.network.moves import CELLS_PER_MOVE

#: Recorded sizes that are kept; each holds its pinned memory and some hundred kilobytes of graph.
MOST_GRAPHS = 64

_WARM_UPS = 3

Arrays = dict[str, npt.NDArray[Any]]


def roomy(size: int) -> int:
    """The least of 1, 2, ..., 8, 10, 12, 14, 16, 20, 24, ... that ``size`` fits into."""
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step


class DeviceNetwork:
    """Logits of the moves and values of the seats, evaluated on ``device``; for one thread.

    Args:
        network: the dense part, already on the device.
        head: the policy head, for the look-up; copied by the caller where that matters.
        device: where they are.
        graphs: replay CUDA graphs; other devices than CUDA have none.
    """

    def __init__(
        self, network: BoardNetwork, head: PolicyHead, device: torch.device, graphs: bool = True
    ) -> None:
        self.device = device
        self._network = network
        self._head = head
        self._graphs: OrderedDict[tuple[int, int], _Replay] | None = None
        if graphs and device.type == "cuda":
            self._graphs = OrderedDict()
            self._pool = torch.cuda.graph_pool_handle()

    def evaluate(
        self, features: Mapping[str, npt.NDArray[Any]], counts: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What the network says of a batch of encoded positions.

        Args:
            features: the encoder's arrays.
            counts: (B,) number of legal moves.

        Returns:
            Logits of the legal moves, one position's after the other's, (sum of counts,) float32;
            value logits (B, 4) float32, relative to the players to move.
        """
        legal = features["legal_mask"]
        arrays: Arrays = {
            "planes": features["planes"],
            "globals": features["globals"],
            "board": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            "kind": features["move_kind"][legal],
            "cells": features["move_cells"][legal],
            "rank": features["move_rank"][legal],
        }
        if self._graphs is None:
            sent = {name: torch.from_numpy(array) for name, array in arrays.items()}
            logits, value = self._compute({k: v.to(self.device) for k, v in sent.items()})
            return logits.cpu().numpy(), value.cpu().numpy()
        return self._replayed(self._graphs, arrays)

    def _replayed(
        self, graphs: OrderedDict[tuple[int, int], _Replay], arrays: Arrays
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        positions, moves = len(arrays["planes"]), len(arrays["board"])
        size = roomy(positions), roomy(moves)
        replay = graphs.pop(size, None)
        if replay is None:
            while len(graphs) >= MOST_GRAPHS:
                graphs.popitem(last=False)
            replay = _Replay(self, arrays, size)
        graphs[size] = replay
        logits, value = replay.run(arrays)
        # The pinned memory is the next call's.
        return logits[:moves].copy(), value[:positions].copy()

    def _compute(self, sent: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        cells, kind_bias, value = self._network(sent["planes"], sent["globals"])
        planes = self._head.num_planes
        logits = self._head.gather_flat(
            cells[..., :planes],
            cells[..., planes:],
            kind_bias,
            *(sent[name].long() for name in ("board", "kind", "cells", "rank")),
        )
        return logits, value


class _Replay:
    """One size of batch: pinned arrays in and out, and the recorded way between them."""

    def __init__(self, network: DeviceNetwork, arrays: Arrays, size: tuple[int, int]) -> None:
        device = network.device
        positions, moves = size
        _, channels, height, width = arrays["planes"].shape
        shapes = {
            # The planes of a cell lie together, as the encoder has them.
            "planes": ((positions, height, width, channels), torch.uint8),
            "globals": ((positions, arrays["globals"].shape[1]), torch.float32),
            "board": ((moves,), torch.int32),
            "kind": ((moves,), torch.uint8),
            "cells": ((moves, CELLS_PER_MOVE), torch.int16),
            "rank": ((moves,), torch.int16),
        }
        pinned = {
            name: torch.zeros(shape, dtype=dtype).pin_memory()
            for name, (shape, dtype) in shapes.items()
        }
        pinned["planes"] = pinned["planes"].permute(0, 3, 1, 2)
        self._in = {name: tensor.numpy() for name, tensor in pinned.items()}
        placed = {name: torch.empty_like(tensor, device=device) for name, tensor in pinned.items()}
        out = tuple(
            torch.empty(shape, dtype=torch.float32).pin_memory()
            for shape in ((moves,), (positions, 4))
        )
        self._out = tuple(tensor.numpy() for tensor in out)
        self._kept = pinned, placed, out

        def whole_way() -> None:
            for name, tensor in placed.items():
                tensor.copy_(pinned[name], non_blocking=True)
            for host, there in zip(out, network._compute(placed), strict=True):
                host.copy_(there, non_blocking=True)

        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                whole_way()
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            self._graph,
            pool=network._pool,
            stream=self._stream,
            capture_error_mode="thread_local",
        ):
            whole_way()

    def run(self, arrays: Arrays) -> tuple[npt.NDArray[np.float32], ...]:
        """Evaluate; what comes back is overwritten by the next call."""
        for name, array in arrays.items():
            held = self._in[name]
            held[: len(array)] = array
            # Positions and moves left of an earlier batch are harmless, but moves must lie on a
            # board that is there: board 0 always is.
            if name == "board":
                held[len(array) :] = 0
        with torch.cuda.stream(self._stream):
            self._graph.replay()
        self._stream.synchronize()
        return self._out

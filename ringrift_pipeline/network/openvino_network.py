"""The dense part of a network, run by OpenVINO: the fastest way to evaluate positions on a CPU.

OpenVINO fuses what lies between the convolutions into them, which torch does only after a
compilation of half a minute (``benchmarks/inference.py`` compares them). The graph is built from
a `BoardNetwork`'s folded weights, operation by operation, so that neither ONNX nor a tracer is
needed. A graph is compiled for each size of batch that it meets (a twentieth of a second each):
one that takes any size is up to a quarter slower.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ringrift_pipeline.network.board_network import BoardBlock, BoardNetwork
from ringrift_pipeline.network.encoding import NUM_GLOBALS, NUM_PLANES

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules
    from ringrift_pipeline.network.model import RingRiftNetwork

HINTS = {"float32": "f32", "bfloat16": "bf16"}
#: Sizes of batch for which a compiled graph is kept, the latest; one takes some 7 MiB on square8.
MOST_SIZES = 24
#: Sums of the trunk over the board above the largest float32 divided by this count as an overflow.
ROOM = 1e8
Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]


@functools.cache
def _core() -> Any:
    """OpenVINO, one for the process and as long as it lives.

    Its CPU plugin gives the thread that loads it a stack for signals. When the last of its objects is
    dropped in another thread that stack is gone, and the next signal that has a handler, such as that of
    a child's end, would kill the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoNetwork:
    """What `BoardNetwork` computes, for batches of any size, on the CPU.

    Args:
        network, rules: as for `BoardNetwork`; the network is copied.
        precision: "float32" or "bfloat16"; inputs and outputs are those of float32.
        threads: that an evaluation takes; None leaves it to OpenVINO, which takes all cores.

    Raises:
        ImportError: OpenVINO is not installed.
    """

    def __init__(
        self, network: RingRiftNetwork, rules: Rules, precision: str, threads: int | None
    ) -> None:
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "EXECUTION_MODE_HINT": "ACCURACY" if precision == "float32" else "PERFORMANCE",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # Every worker would take the same core for its own.
            "ENABLE_CPU_PINNING": False,
        }
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        self._core, self._properties = _core(), properties
        self._board, self._size = BoardNetwork(network, rules), int(rules.size)
        self._requests: OrderedDict[int, Any] = OrderedDict()

    def __call__(self, planes: npt.NDArray[np.uint8], globals_: npt.NDArray[np.float32]) -> Outputs:
        """``cells``, ``kind_bias`` and ``value_logits`` as `BoardNetwork.forward` returns them.

        They are valid until the next call. ``planes`` is (B, NUM_PLANES, N, N).
        """
        request = self._request(len(planes))
        request.infer([planes, globals_])
        cells, kind_bias, value = (request.get_output_tensor(index).data for index in range(3))
        return cells, kind_bias, value

    def _request(self, batch: int) -> Any:
        """What evaluates batches of this size; made when it is first asked for."""
        if batch in self._requests:
            self._requests.move_to_end(batch)
            return self._requests[batch]
        while len(self._requests) >= MOST_SIZES:
            self._requests.popitem(last=False)
        graph = _Graph(self._board, self._size, batch).model()
        compiled = self._core.compile_model(graph, "CPU", self._properties)
        self._requests[batch] = compiled.create_infer_request()
        return self._requests[batch]


class _Graph:
    """`BoardNetwork.forward` as a graph of OpenVINO's operations, for batches of one size."""

    def __init__(self, network: BoardNetwork, size: int, batch: int) -> None:
        from openvino import opset13

        self.ops = opset13
        self.network, self.size, self.batch = network, size, batch
        mask = network.mask
        self.mask = None if mask is None else mask.numpy().astype(np.float32)

    def model(self) -> Any:
        from openvino import Model

        ops, network, size, batch = self.ops, self.network, self.size, self.batch
        planes = ops.parameter([batch, NUM_PLANES, size, size], np.uint8, name="planes")
        globals_ = ops.parameter([batch, NUM_GLOBALS], np.float32, name="globals")
        x = self.conv(ops.convert(planes, np.float32), network.stem)
        x = ops.add(x, self.everywhere(self.linear(globals_, network.stem_globals)))
        for block in network.blocks:
            assert isinstance(block, BoardBlock)
            y = self.conv(self.on_board(self.at_least(x, block.low)), block.first)
            if block.pool is not None:
                y = self.on_board(ops.relu(y))
                y = ops.add(y, self.everywhere(self.linear(self.pool(y), block.pool)))
            y = self.conv(self.on_board(self.at_least(y, block.middle)), block.second)
            x = ops.add(x, y)
        x = self.on_board(ops.relu(x))
        pooled = self.pool(x)
        overflowed = self.sound(ops.multiply(pooled, np.float32(ROOM)))
        hidden = self.conv(x, network.hidden)
        hidden = ops.add(hidden, self.everywhere(self.linear(pooled, network.hidden_pool)))
        hidden = ops.relu(hidden)
        cells = ops.transpose(self.conv(hidden, network.cells), np.array([0, 2, 3, 1]))
        cells = ops.reshape(cells, np.array([batch, size * size, -1]), special_zero=False)
        value = self.conv(x, network.value_conv)
        overflowed = ops.add(overflowed, self.sound(value))
        value = self.pool(self.on_board(ops.relu(value)))
        value = self.linear(ops.concat([value, globals_], axis=1), network.value_hidden)
        overflowed = ops.add(overflowed, self.sound(value))
        value = ops.add(self.linear(ops.relu(value), network.value_out), overflowed)
        outputs = (cells, self.linear(pooled, network.kind_bias), value)
        return Model([ops.result(output) for output in outputs], [planes, globals_], "board")

    def sound(self, x: Any) -> Any:
        """(B, 1): 0, or NaN where anything of the position is not finite; the value tells it.

        OpenVINO's relu and clamp make numbers of NaN, and what follows of them would look like any
        other position. It is looked at before the value's relus, where that costs next to nothing, and
        of the trunk by its sums and maxima, which are too large wherever a sum has overflowed.
        """
        axes = np.arange(1, len(x.get_output_shape(0)))
        total = self.ops.reduce_sum(x, axes, False)
        return self.ops.unsqueeze(self.ops.multiply(total, np.float32(0.0)), np.array([1]))

    def conv(self, x: Any, layer: nn.Module) -> Any:
        assert isinstance(layer, nn.Conv2d)
        padding = [int(each) for each in layer.padding]
        y = self.ops.convolution(x, _array(layer.weight), [1, 1], padding, padding, [1, 1])
        assert layer.bias is not None
        return self.ops.add(y, _array(layer.bias).reshape(1, -1, 1, 1))

    def linear(self, x: Any, layer: nn.Module) -> Any:
        assert isinstance(layer, nn.Linear)
        y = self.ops.matmul(x, _array(layer.weight), False, True)
        return self.ops.add(y, _array(layer.bias).reshape(1, -1))

    def at_least(self, x: Any, low: float) -> Any:
        return self.ops.clamp(x, low, float(np.finfo(np.float32).max))

    def on_board(self, x: Any) -> Any:
        return x if self.mask is None else self.ops.multiply(x, self.mask)

    def pool(self, x: Any) -> Any:
        axes = np.array([2, 3])
        both = [self.ops.reduce_sum(x, axes, False), self.ops.reduce_max(x, axes, False)]
        return self.ops.concat(both, axis=1)

    def everywhere(self, vector: Any) -> Any:
        return self.ops.unsqueeze(vector, np.array([2, 3]))


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())

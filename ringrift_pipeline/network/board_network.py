"""The network for inference on one board: everything of it but the look-up of the moves.

``RingRiftNetwork`` is the definition; this folds what is fixed once training is over and the
board is known into the weights. The gains, the plane scales and the hexagonal kernel's mask are
factors of weights. A block's input ``relu(x) + b`` is ``max(x + b, b)``: the trunk carries
``x + b``, and the change from one block's ``b`` to the next one's is a bias. The mean over the
board is a sum times a constant, so pooling's two means become one. Boards that fill their plane
need no mask at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ringrift_pipeline.network.model import BoardConv2d, ResidualBlock, RingRiftNetwork

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules


def _conv(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> nn.Conv2d:
    outputs, inputs, width, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, width, padding=width // 2, device="meta")
    weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return conv


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    linear.bias = nn.Parameter(bias.float(), requires_grad=False)
    return linear


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer, float64, on the CPU, its kernel's mask applied."""
    assert isinstance(layer, BoardConv2d | nn.Conv2d | nn.Linear)
    weight = layer.weight.detach().cpu().double()
    if isinstance(layer, BoardConv2d) and layer.kernel_mask is not None:
        weight = weight * layer.kernel_mask.cpu().double()
    if layer.bias is None:
        return weight, torch.zeros(weight.shape[0], dtype=torch.float64)
    return weight, layer.bias.detach().cpu().double()


def _pooled(layer: nn.Module, channels: int, cells: int) -> tuple[Tensor, Tensor]:
    """Weights for (sum, maximum, rest) of those for (mean, scaled mean, maximum, rest)."""
    weight, bias = _weights(layer)
    mean, scaled, rest = weight.split((channels, channels, weight.shape[1] - 2 * channels), dim=1)
    total = (mean + scaled * ((cells**0.5 - 12.0) / 8.0)) / cells
    return torch.cat((total, rest), dim=1), bias


class BoardBlock(nn.Module):
    """A residual block; ``low`` and ``middle`` are what its two inputs are clamped to."""

    def __init__(self, block: ResidualBlock, change: float, cells: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.low, self.middle = block.bias_in.item(), block.bias_mid.item()
        weight, bias = _weights(block.first)
        if block.pool is None:
            self.pool = None
            bias = bias + self.middle
        else:
            pool_weight, pool_bias = _pooled(block.pool, weight.shape[0], cells)
            self.pool = _linear(pool_weight, pool_bias + self.middle)
        self.first = _conv(weight, bias, dtype)
        weight, bias = _weights(block.second)
        gain = block.gain.item()
        self.second = _conv(weight * gain, bias * gain + change, dtype)


class BoardNetwork(nn.Module):
    """The dense part of a network, frozen, for the board of one config.

    Convolutions and the trunk have ``dtype``; pooled vectors, the layers over them and all
    outputs are float32. The network is copied.

    ``forward`` takes ``planes`` (B, NUM_PLANES, N, N) of any type and ``globals_``
    (B, NUM_GLOBALS) float32, and returns

    - ``cells`` (B, N*N, planes + 48): what each cell adds to a move's logit in each role, and
      behind it the cell's embeddings as first, second and third cell of a move;
    - ``kind_bias`` (B, NUM_MOVE_KINDS);
    - ``value_logits`` (B, 4), relative to the player to move; those of absent seats mean nothing.
    """

    mask: Tensor | None

    def __init__(
        self, network: RingRiftNetwork, rules: Rules, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.dtype = dtype
        size, cells = int(rules.size), len(rules.cells)
        mask = None
        if cells < size * size:
            mask = torch.zeros(size * size, dtype=dtype)
            mask[torch.from_numpy(np.asarray(rules.plane_of)[np.asarray(rules.cells)]).long()] = 1
            mask = mask.view(1, 1, size, size)
        self.register_buffer("mask", mask)
        channels, width = network.config.channels, network.config.value_channels
        blocks = [block for block in network.blocks if isinstance(block, ResidualBlock)]
        shifts = [block.bias_in.item() for block in blocks] + [0.0]

        weight, bias = _weights(network.stem)
        scales = network.plane_scales.detach().cpu().double()
        self.stem = _conv(weight * scales, bias + shifts[0], dtype)
        self.stem_globals = _linear(*_weights(network.stem_globals))
        self.blocks = nn.ModuleList(
            BoardBlock(block, after - before, cells, dtype)
            for block, before, after in zip(blocks, shifts, shifts[1:], strict=False)
        )
        policy, value = network.policy, network.value
        self.hidden = _conv(*_weights(policy.hidden), dtype)
        self.hidden_pool = _linear(*_pooled(policy.hidden_pool, channels, cells))
        planes, embed = _weights(policy.planes), _weights(policy.embed)
        weight, bias = torch.cat((planes[0], embed[0])), torch.cat((planes[1], embed[1]))
        self.cells = _conv(weight, bias, dtype)
        self.kind_bias = _linear(*_pooled(policy.kind_bias, channels, cells))
        self.value_conv = _conv(*_weights(value.conv), dtype)
        self.value_hidden = _linear(*_pooled(value.hidden, width, cells))
        self.value_out = _linear(*_weights(value.out))

    def _on_board(self, x: Tensor) -> Tensor:
        return x if self.mask is None else x.mul_(self.mask)

    def _pool(self, x: Tensor) -> Tensor:
        # Reducing bfloat16 by amax takes fifteen times as long as pooling does.
        if x.dtype == torch.float32:
            most = x.amax(dim=(2, 3))
        else:
            most = F.adaptive_max_pool2d(x, 1).flatten(1).float()
        return torch.cat((x.sum(dim=(2, 3), dtype=torch.float32), most), dim=1)

    def _everywhere(self, vector: Tensor) -> Tensor:
        return vector.to(self.dtype)[:, :, None, None]

    def forward(self, planes: Tensor, globals_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = planes.to(self.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem(x).add_(self._everywhere(self.stem_globals(globals_)))
        for block in self.blocks:
            assert isinstance(block, BoardBlock)
            y = block.first(self._on_board(x.clamp_min(block.low)))
            if block.pool is not None:
                y = self._on_board(y.relu_())
                y = y.add_(self._everywhere(block.pool(self._pool(y))))
            y = block.second(self._on_board(y.clamp_min_(block.middle)))
            x = x.add_(y)
        x = self._on_board(x.relu_())
        pooled = self._pool(x)
        hidden = self.hidden(x).add_(self._everywhere(self.hidden_pool(pooled))).relu_()
        cells = self.cells(hidden).permute(0, 2, 3, 1).flatten(1, 2).float()
        value = self._pool(self._on_board(self.value_conv(x).relu_()))
        value = self.value_hidden(torch.cat((value, globals_), dim=1)).relu_()
        return cells, self.kind_bias(pooled), self.value_out(value)

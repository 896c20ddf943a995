"""How a forward pass uses a model's parameters, and the per-sample gradients that follow.

Of a convolution or a linear map the gradient of each sample's weights follows from its input and
the gradient of its output. A parameter added to or multiplied with activations stands once a
sample, so that one backward pass gives the gradient of each copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass
class Use:
    """One use of a weight in a forward pass.

    Attributes:
        weight: a parameter, or a tensor computed from parameters alone.
        names: the parameters behind it.
        at: the edge where the gradient is asked for: of the output, or of the weight's copies.
        per_sample: (rows, gradient at ``at``) -> (rows, *weight.shape).
        squares: gradient at ``at`` -> sum over samples of the square, where there is a short cut.
        source, version: an input that must not have been overwritten since.
    """

    weight: Tensor
    names: frozenset[str]
    at: Any
    per_sample: Callable[[slice, Tensor], Tensor]
    squares: Callable[[Tensor], Tensor] | None = None
    source: Tensor | None = None
    version: int = 0


class ParameterUses(TorchFunctionMode):
    """Records how a model's parameters are used; ``odd`` are those used in unknown ways."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], size: int) -> None:
        super().__init__()
        self.size = size
        self.parameters = parameters
        self.odd: set[str] = set()
        self.uses: list[Use] = []
        self._behind = {id(p): frozenset((name,)) for name, p in parameters.items()}
        self._constants = {id(buffer) for buffer in model.buffers()}
        self._constants |= {id(p) for p in model.parameters() if id(p) not in self._behind}
        self._kept: list[Tensor] = []  # so that no id is given twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        weights = [tensor for tensor in tensors if self.is_weight(tensor)]
        if not weights:
            return func(*args, **kwargs)
        names = frozenset().union(*(self.names(weight) for weight in weights))
        if all(self.is_weight(t) or id(t) in self._constants for t in tensors):
            result = func(*args, **kwargs)
            for tensor in _tensors(result):
                if tensor.requires_grad and not self.is_weight(tensor):
                    self._behind[id(tensor)] = names
                    self._kept.append(tensor)
            return result
        handler = _HANDLERS.get(func)
        result = NotImplemented if handler is None else handler(self, func, *args, **kwargs)
        if result is NotImplemented:
            self.odd |= names
            return func(*args, **kwargs)
        return result

    def is_weight(self, tensor: Any) -> bool:
        """Whether this is a trainable parameter or was computed from parameters alone."""
        return isinstance(tensor, Tensor) and id(tensor) in self._behind

    def names(self, tensor: Tensor) -> frozenset[str]:
        """The parameters behind a weight."""
        return self._behind[id(tensor)]

    def batched(self, tensor: Any) -> bool:
        """Whether this is activations with the batch in front."""
        return isinstance(tensor, Tensor) and tensor.dim() > 0 and tensor.shape[0] == self.size

    def record(self, weight: Tensor, at: Any, per_sample: Any, **more: Any) -> None:
        self.uses.append(Use(weight, self.names(weight), at, per_sample, **more))

    def copies(self, weight: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight, as ``shape`` (first dimension 1), standing once a sample."""
        copies = weight.view(shape).expand(self.size, *shape[1:])
        self.record(
            weight, get_gradient_edge(copies), lambda rows, g: g[rows].reshape(-1, *weight.shape)
        )
        return copies

    def shallow(self, loss: Tensor, names: Sequence[str]) -> list[str]:
        """Those of the parameters from which no convolution or linear map leads to the loss.

        A backward pass that ends at them is cheap.
        """
        heavy = {use.at.node for use in self.uses if use.source is not None}
        wanted = {id(self.parameters[name]): name for name in names}
        deep: set[str] = set()
        seen: dict[Any, bool] = {}  # node -> whether it was reached through a heavy one
        queue = [(loss.grad_fn, False)]
        while queue:
            node, below = queue.pop()
            if node is None or seen.get(node) in (True, below):
                continue
            below = below or node in heavy
            seen[node] = below
            name = wanted.get(id(getattr(node, "variable", None)))
            if name is not None and below:
                deep.add(name)
            queue.extend((parent, below) for parent, _ in node.next_functions)
        return [name for name in names if name not in deep]

    def gradients(self, total: Tensor) -> tuple[list[Use], list[Tensor]]:
        """The uses that the total loss depends on, and the gradient at each."""
        for use in self.uses:
            if use.source is not None and use.source._version != use.version:
                self.odd |= use.names
        uses = [use for use in self.uses if not use.names & self.odd]
        if not uses:
            return [], []
        places = [use.at for use in uses]
        found = torch.autograd.grad(total, places, allow_unused=True, retain_graph=True)
        pairs = [(use, g) for use, g in zip(uses, found, strict=True) if g is not None]
        return [use for use, _ in pairs], [g for _, g in pairs]


# --- the uses that are known ----------------------------------------------------------------


def _linear(
    capture: ParameterUses, func: Any, input: Tensor, weight: Tensor, bias: Any = None
) -> Any:
    if capture.is_weight(input) or not capture.batched(input) or input.dim() < 2:
        return NotImplemented
    result = F.linear(input, weight, bias)
    if not result.requires_grad:
        return result
    edge = get_gradient_edge(result)
    if capture.is_weight(weight):
        x = input.detach()

        def of_weight(rows: slice, g: Tensor) -> Tensor:
            some, at = _wide(x[rows]), _wide(g[rows])
            if some.dim() == 2:
                return at.unsqueeze(2) * some.unsqueeze(1)
            return at.flatten(1, -2).transpose(1, 2) @ some.flatten(1, -2)

        def squares(g: Tensor) -> Tensor:
            return _wide(g).square().t() @ _wide(x).square()

        short = {"squares": squares} if x.dim() == 2 else {}
        capture.record(weight, edge, of_weight, source=input, version=input._version, **short)
    if capture.is_weight(bias):
        capture.record(
            bias,
            edge,
            lambda rows, g: _wide(g[rows]).flatten(1, -2).sum(1) if g.dim() > 2 else _wide(g[rows]),
        )
    return result


def _conv2d(
    capture: ParameterUses,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if capture.is_weight(input) or not capture.batched(input) or input.dim() != 4:
        return NotImplemented
    result = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if not result.requires_grad:
        return result
    edge = get_gradient_edge(result)
    if capture.is_weight(weight):
        x = input.detach()
        margins = _margins(padding, weight.shape[2:], _pair(dilation))

        def of_weight(rows: slice, g: Tensor) -> Tensor:
            at = _wide(g[rows]).flatten(2).unflatten(1, (groups, -1))  # (b, groups, O / groups, L)
            patches = _patches(
                F.pad(_wide(x[rows]), margins), weight.shape[2:], g.shape[2:], stride, dilation
            )  # (b, L, taps, I)
            patches = patches.unflatten(3, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(3)
            made = (at @ patches).view(-1, weight.shape[0], *weight.shape[2:], weight.shape[1])
            return made.permute(0, 1, 4, 2, 3)

        capture.record(weight, edge, of_weight, source=input, version=input._version)
    if capture.is_weight(bias):
        capture.record(bias, edge, lambda rows, g: _wide(g[rows]).sum(dim=(2, 3)))
    return result


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _margins(padding: Any, kernel: Sequence[int], dilation: tuple[int, int]) -> tuple[int, ...]:
    """A convolution's padding as ``F.pad`` takes it: left, right, top, bottom."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        down, right = (d * (size - 1) for d, size in zip(dilation, kernel, strict=True))
        return (right // 2, right - right // 2, down // 2, down - down // 2)
    down, right = _pair(padding)
    return (right, right, down, down)


def _patches(
    padded: Tensor, kernel: Sequence[int], out: Sequence[int], stride: Any, dilation: Any
) -> Tensor:
    """(b, I, H, W) -> (b, cells, taps, I): what each output cell sees.

    Channels come last, so that whole runs of them are copied: four times faster than ``unfold``
    on boards a few cells wide.
    """
    x = padded.permute(0, 2, 3, 1).contiguous()
    (step_down, step_right), (far_down, far_right) = _pair(stride), _pair(dilation)
    height, width = (out[0] - 1) * step_down + 1, (out[1] - 1) * step_right + 1
    taps = [
        x[:, top : top + height : step_down, left : left + width : step_right]
        for top in range(0, kernel[0] * far_down, far_down)
        for left in range(0, kernel[1] * far_right, far_right)
    ]
    return torch.stack(taps, dim=3).flatten(1, 2)


def _pointwise(capture: ParameterUses, func: Any, left: Any, right: Any, **kwargs: Any) -> Any:
    if capture.is_weight(left) == capture.is_weight(right):
        return NotImplemented
    weight, other = (left, right) if capture.is_weight(left) else (right, left)
    shape = (1,) * (other.dim() - weight.dim()) + tuple(weight.shape)
    if not capture.batched(other) or len(shape) > other.dim() or shape[0] != 1:
        return NotImplemented
    copies = capture.copies(weight, shape)
    pair = (copies, right) if weight is left else (left, copies)
    return func(*pair, **kwargs)


def _layer_norm(
    capture: ParameterUses,
    func: Any,
    input: Tensor,
    shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    if capture.is_weight(input) or not capture.batched(input) or input.dim() <= len(shape):
        return NotImplemented
    lead = (1,) * (input.dim() - len(shape))
    return _affine(capture, F.layer_norm(input, shape, None, None, eps), weight, bias, lead, ())


def _group_norm(
    capture: ParameterUses,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    if capture.is_weight(input) or not capture.batched(input):
        return NotImplemented
    normed = F.group_norm(input, num_groups, None, None, eps)
    return _affine(capture, normed, weight, bias, (1,), (1,) * (input.dim() - 2))


def _batch_norm(
    capture: ParameterUses,
    func: Any,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if capture.is_weight(input) or not capture.batched(input) or training:
        return NotImplemented
    normed = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
    return _affine(capture, normed, weight, bias, (1,), (1,) * (input.dim() - 2))


def _affine(
    capture: ParameterUses,
    x: Tensor,
    weight: Any,
    bias: Any,
    lead: tuple[int, ...],
    tail: tuple[int, ...],
) -> Tensor:
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            shape = (*lead, *parameter.shape, *tail)
            weighty = capture.is_weight(parameter)
            x = apply(x, capture.copies(parameter, shape) if weighty else parameter.view(shape))
    return x


def _wide(tensor: Tensor) -> Tensor:
    """Half precision as float32: squares of small gradients would vanish."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    Tensor.__rsub__: _pointwise,
} | {
    getattr(owner, name): _pointwise
    for owner in (torch, Tensor)
    for name in ("add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_")
    if hasattr(owner, name)
}


__all__ = ["ParameterUses", "Use"]

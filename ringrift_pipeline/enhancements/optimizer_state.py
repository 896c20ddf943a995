"""Whether a saved state of an optimizer fits one: what torch itself takes without looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ringrift_pipeline.enhancements import state_forms as forms


def check_optimizer_state(name: str, state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check a ``state_dict`` of an optimizer against the optimizer that is to load it.

    Raises:
        ValueError: groups of other parameters or settings (another class of optimizer), settings
            of another kind or not finite, or states that do not fit their parameters; by ``name``.
    """
    anything: forms.Form = lambda *_: None  # noqa: E731
    forms.record(
        state=forms.mapping(anything, int), param_groups=forms.listed(forms.mapping(anything))
    )(name, state)
    groups, saved = optimizer.param_groups, state["param_groups"]
    if len(saved) != len(groups):
        raise ValueError(f"{name}.param_groups: {len(saved)} groups, the optimizer {len(groups)}")
    start = 0
    for place, (group, ours) in enumerate(zip(saved, groups, strict=True)):
        where = f"{name}.param_groups[{place}]"
        odd = sorted(group.keys() ^ ours.keys())
        if odd:
            raise ValueError(
                f"{where} is of another kind of optimizer: {', '.join(odd)} only on one side"
            )
        numbers = list(range(start, start + len(ours["params"])))
        if list(group["params"]) != numbers if _listed(group["params"]) else True:
            raise ValueError(f"{where}.params must be {numbers[:1]}…, got {group['params']!r:.80}")
        start += len(numbers)
        for key in group.keys() - {"params"}:
            _check_setting(f"{where}.{key}", group[key], ours[key])
    parameters = [parameter for group in groups for parameter in group["params"]]
    check_parameter_states(f"{name}.state", state["state"], parameters)


def check_parameter_states(name: str, states: Mapping[int, Any], parameters: Sequence[Any]) -> None:
    """Check an optimizer's states by number of their parameter.

    Raises:
        ValueError: states of other parameters, other entries for one than for another, or an entry
            that is neither a number nor a finite tensor, 0-d or of its parameter's shape; by name.
    """
    first: dict[str, bool] | None = None  # entry: whether it is None
    for number, state in states.items():
        where = f"{name}[{number}]"
        if not 0 <= number < len(parameters):
            raise ValueError(f"{where}: there are {len(parameters)} parameters")
        forms.mapping(lambda *_: None)(where, state)
        kinds = {key: value is None for key, value in state.items()}
        first = kinds if first is None else first
        if not kinds or kinds != first:
            odd = sorted(
                key for key in kinds.keys() | first.keys() if kinds.get(key) != first.get(key)
            )
            raise ValueError(f"{where}: {', '.join(odd) or 'it is empty'}: unlike the others'")
        shapes = (parameters[number].shape, torch.Size([]))
        for key, value in state.items():
            if isinstance(value, Tensor):
                forms.tensor(f"{where}.{key}", value)
                if value.shape not in shapes:
                    raise ValueError(
                        f"{where}.{key} has shape {tuple(value.shape)}, its parameter "
                        f"{tuple(shapes[0])}"
                    )
            elif value is not None:
                forms.number()(f"{where}.{key}", value)


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _check_setting(name: str, value: Any, ours: Any) -> None:
    """A group's setting is of the kind that ours is."""
    if isinstance(ours, Tensor):
        ours = float(ours)
    if isinstance(value, Tensor):
        value = float(value)
    if isinstance(ours, bool):
        forms.flag(name, value)
    elif isinstance(ours, int | float):
        forms.number()(name, value)
    elif _listed(ours):
        forms.listed(forms.number(), exactly=len(ours))(name, value)
    elif ours is None and value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} must be None or True or False, got {value!r:.80}")


__all__ = ["check_optimizer_state", "check_parameter_states"]

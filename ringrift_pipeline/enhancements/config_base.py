"""What all groups of settings have in common: immutable, validated, no unknown names.

Numbers are strict (no ``True`` for an int, no ``"3"`` for a 3) and finite.
"""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def nearest_name(name: str, valid: list[str]) -> str | None:
    """The valid name that ``name`` most probably stands for, or None.

    A dotted name is compared whole and by its last part, so ``batch_siz`` finds
    ``training.batch_size``.
    """
    folded = {candidate.lower(): candidate for candidate in valid}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    if close:
        return folded[close[0]]
    leaves: dict[str, str] = {}
    for candidate in valid:
        leaves.setdefault(candidate.rsplit(".", 1)[-1].lower(), candidate)
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1].lower(), list(leaves), 1, 0.6)
    return leaves[close[0]] if close else None


class ConfigGroup(BaseModel):
    """Base of all groups: immutable, validated, unknown keys refused with the nearest name."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    valid = list(cls.model_fields)
                    near = nearest_name(str(key), valid)
                    hint = f"did you mean {near!r}?" if near else f"valid: {', '.join(valid)}"
                    raise ValueError(f"unknown setting {key!r}; {hint}")
        return data

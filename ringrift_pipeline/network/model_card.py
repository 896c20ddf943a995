"""The model card of an exported network: what it is, how strong, from what, and what it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules
    from ringrift_pipeline.network.model import RingRiftNetwork

LIMITS = (
    "It plays `{config}` and no other board or number of players. What it makes of positions that "
    "games against itself do not come to is not known.",
    "It was learned from games against itself alone, has met no other program than those above, "
    "and no person.",
    "Its strength is that of a search with it; the bare policy is weaker.",
    "`value` is not tempered. A chance is as good as the calibration on games held out, which is "
    "small for a small run.",
)


def model_card(
    network: RingRiftNetwork, rules: Rules, facts: Mapping[str, Any], files: Mapping[str, str]
) -> str:
    """The card as Markdown.

    Args:
        facts: JSON types. ``evaluation`` (of `commands.export.evaluation_facts`) becomes a section of its own,
            everything else a row of the table.
        files: name -> what it is.
    """
    return "\n".join(
        [
            *_head(network, rules, facts),
            *_strength(facts.get("evaluation")),
            "## Limits",
            "",
            *(f"- {limit.format(config=rules.config)}" for limit in LIMITS),
            "",
            *_use(files),
        ]
    )


def _head(network: RingRiftNetwork, rules: Rules, facts: Mapping[str, Any]) -> Iterator[str]:
    shape = network.config
    yield from (
        "---",
        "library_name: onnx",
        "tags: [ringrift, board-games, reinforcement-learning, self-play]",
        "license: mit",
        "---",
        f"# RingRift {rules.config}",
        "",
        "Policy and value of [RingRift](https://github.com/synaptent/RingRift) positions on "
        f"`{rules.config}`",
        f"({rules.geometry} board of {len(rules.cells)} cells, {rules.players} players), learned "
        "from games",
        "against itself by `ringrift_pipeline`. MIT license.",
        "",
        "| | |",
        "|---|---|",
        f"| trunk | {shape.blocks} residual blocks of {shape.channels} channels |",
        f"| parameters | {network.num_parameters:,} |",
    )
    for name, value in facts.items():
        if not isinstance(value, Mapping):
            shown = f"{value:,}" if isinstance(value, int) else value
            yield f"| {name.replace('_', ' ')} | {shown} |"
    yield ""


def _strength(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    yield from ("## How strong", "")
    if evaluation is None:
        yield from ("It has not been evaluated.", "")
        return
    confidence = f"{evaluation['confidence']:.0%}"
    yield (
        f"Rating {evaluation['rating']:.0f}, {confidence} interval {evaluation['rating_low']:.0f} "
        f"to {evaluation['rating_high']:.0f}, where {evaluation['anchor']} is "
        f"{evaluation['anchor_rating']:.0f}, by its own evaluation alone: {evaluation['games']:,} games, "
        f"seats rotated, {evaluation['simulations']} simulations a decision."
    )
    yield from ("", "| against | games | share of wins | interval |", "|---|---:|---:|---|")
    for match in evaluation["matches"]:
        yield (
            f"| {match['opponent']} | {match['games']:,} | {match['win_rate']:.1%} | "
            f"{match['low']:.1%} to {match['high']:.1%} |"
        )
    verdict = "passed" if evaluation["gate_passed"] else "not passed"
    yield from ("", f"The promotion gate: **{verdict}**.", "")
    yield from (f"- {reason}" for reason in evaluation["reasons"])
    yield ""


def _use(files: Mapping[str, str]) -> Iterator[str]:
    yield from ("## Files", "", "| file | what it is |", "|---|---|")
    yield from (f"| {names} | {what} |" for names, what in files.items())
    yield """
## Use

    import numpy as np, onnxruntime
    position = np.load("position.npz")
    session = onnxruntime.InferenceSession("model.onnx")
    inputs = {each.name: position[each.name] for each in session.get_inputs()}
    policy, value = session.run(["policy", "value"], inputs)

`policy` is a distribution over the legal moves in the engine's canonical order, `value` each
seat's chance of winning, the player to move first. Chances are as the value head gives them: they
are not tempered. `ringrift_pipeline.network.encode_states` encodes positions.
"""

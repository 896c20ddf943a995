"""The hardest examples as drawn boards, with what the search and the network make of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ringrift_pipeline.game import State
    from ringrift_pipeline.selfplay.plan import Plan
    from ringrift_pipeline.store import Artefact, Folder, Store
    from ringrift_pipeline.training.window import Window

__all__ = ["SHOWN", "Example", "draw_gallery", "find_examples", "judged_by"]

GALLERY = "gallery"
SHOWN = 12  # examples of the whole picture
MOST_WORDS = 40  # characters of a move in words
BEST = 3  # moves drawn of an opinion
WIDTH, LINE = 300, 15  # of a board, and of a line of text, in the picture's units


@dataclass(frozen=True)
class Example:
    """One hard example as it is drawn; policies (L,) are aligned with the state's legal moves.

    Attributes
    ----------
    title: two lines or so that say which it is and why it is hard.
    search, network: the two policies; ``network`` is None where no model judged it.
    search_value, network_value: the mover's share of the win by each, None where not known.
    """

    state: State
    title: tuple[str, ...]
    search: NDArray[np.float64]
    network: NDArray[np.float64] | None
    search_value: float | None
    network_value: float | None


def draw_gallery(folder: Folder, examples: list[Example]) -> None:
    """Draw the examples, one below the other: ``gallery.svg`` the first few, as many as are small
    enough for the event log (where not even one is, the search's board of the first that is),
    ``gallery.full.svg`` all.
    """
    from ringrift_pipeline.drawing.charts import FULL, MOST_BYTES

    whole = _stacked([_row(example) for example in examples])
    (folder / f"{GALLERY}{FULL}").write_text(whole, encoding="utf-8")
    rows = [_row(example, compact=True) for example in examples]
    choices = [rows[:count] for count in range(len(rows), 0, -1)]
    choices += [[_row(replace(example, network=None), compact=True)] for example in examples]
    for choice in choices:
        small = _stacked(choice)
        if len(small.encode()) <= MOST_BYTES:
            (folder / f"{GALLERY}.svg").write_text(small, encoding="utf-8")
            return


def _row(example: Example, compact: bool = False) -> tuple[str, float, int]:
    """An example's elements at the origin, their height, and how many boards they hold."""
    panels = [("search", example.search, example.search_value)]
    if example.network is not None:
        panels.append(("network", example.network, example.network_value))
    text = "".join(
        f'<text x="4" y="{LINE * (place + 1)}">{escape(line)}</text>'
        for place, line in enumerate(example.title)
    )
    top = LINE * (len(example.title) + 3)
    height = 0.0
    for place, (who, policy, value) in enumerate(panels):
        said = who if value is None else f"{who}: the mover wins {value:.0%}"
        board, tall = _board(example.state, policy, (place * WIDTH, top), compact)
        x = place * WIDTH + 4
        text += f'<text x="{x}" y="{top - LINE - 5}" font-weight="600">{said}</text>'
        best = escape(_best(example.state, policy))
        text += f'<text x="{x}" y="{top - 5}">{best}</text>{board}'
        height = max(height, tall)
    return text, top + height + LINE, len(panels)


def _best(state: State, policy: NDArray[np.float64]) -> str:
    """The best move in words: not every move touches a cell."""
    from ringrift_pipeline.drawing import describe

    best = int(np.argmax(policy))
    words = describe(state.legal_moves()[best].to_record())
    shown = words if len(words) <= MOST_WORDS else f"{words[: MOST_WORDS - 1]}…"
    return f"{policy[best]:.0%} {shown}"


def _board(
    state: State, policy: NDArray[np.float64], at: tuple[float, float], compact: bool
) -> tuple[str, float]:
    """The board with the best moves of a policy, placed in a larger picture; its height there."""
    from ringrift_pipeline.drawing import board_svg

    moves = state.legal_moves()
    best = np.argsort(-policy, kind="stable")[:BEST]
    shares = [(moves[i].to_record(), float(policy[i])) for i in best if policy[i] >= 0.005]
    drawn = board_svg(state.config, state.to_record(), shares=shares, compact=compact)
    box = drawn.split('viewBox="', 1)[1].split('"', 1)[0]
    wide, tall = (float(size) for size in box.split()[2:])
    height = WIDTH * tall / wide
    placed = f'<svg x="{at[0]:g}" y="{at[1]:g}" width="{WIDTH}" height="{height:.0f}"'
    return placed + drawn.removeprefix("<svg"), height


def _stacked(rows: list[tuple[str, float, int]]) -> str:
    width = WIDTH * max((boards for _, _, boards in rows), default=1)
    height = sum(tall for _, tall, _ in rows)
    parts, y = [], 0.0
    for text, tall, _ in rows:
        parts.append(f'<g transform="translate(0 {y:.0f})">{text}</g>')
        y += tall
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" height="{height:.0f}" font-family="system-ui,sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>'
    )


def judged_by(
    model: Artefact, window: Window, rows: list[int], device: str
) -> dict[int, tuple[NDArray[np.float64], float]]:
    """By window row, a network's policy over the legal moves (L,) and the mover's share of the win.

    NonFiniteOutputError for what is not finite, naming model, rows and games.
    """
    import torch

    from ringrift_pipeline.network import load_model, resolve_device
    from ringrift_pipeline.training.dataset import WindowDataset
    from ringrift_pipeline.training.judging import by_network, check_prediction

    on = resolve_device(device)
    numbers = np.array(rows, np.int64)
    batch = WindowDataset(window, on).batch(numbers)
    legal = batch["legal_mask"]
    with torch.inference_mode():
        predict = by_network(load_model(model.path, on))
        log_policy, shares = predict(batch["features"], legal)
    check_prediction(f"the network ({model.path})", window, numbers, legal, log_policy, shares)
    policies, chances = log_policy.double().exp().cpu().numpy(), shares[:, 0].cpu().numpy()
    counts = window.counts
    return {
        row: (policies[place, : counts[row]], float(chances[place]))
        for place, row in enumerate(rows)
    }


def find_examples(
    store: Store,
    plan: Plan,
    hard: list[dict[str, Any]],
    policies: dict[int, tuple[NDArray[np.float64], float]],
) -> list[Example]:
    """The examples of rows of the table, their positions played again from the shards.

    Parameters
    ----------
    hard:
        Rows of `tables.HARD_EXAMPLES`, of this generation's own games.
    policies:
        By window row, the network's policy over the legal moves and its share of the mover's win;
        rows that no network judged are missing.
    """
    from ringrift_pipeline.selfplay.shards import (
        SHARD_FILE,
        column,
        ragged_column,
        read_shard,
        shard_kind,
    )

    columns = ("game_id", "ply", "player", "selected", "policy", "search_value", "full_search")
    found: dict[tuple[str, int], Example] = {}
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for row in hard:
        by_shard.setdefault(int(row["game_id"].split("-")[-2]), []).append(row)
    for shard, wanted in by_shard.items():
        artefact = store.require(plan.config, plan.generation, shard_kind(shard))
        table = read_shard(artefact.file(SHARD_FILE), columns)
        ids = column(table, "game_id")
        for row in wanted:
            rows = np.flatnonzero(ids == row["game_id"])
            game = table.slice(int(rows[0]), len(rows))
            at = int(np.flatnonzero(column(game, "ply") == row["ply"])[0])
            policy = ragged_column(game.slice(at, 1), "policy")[1].astype(np.float64)
            mover = int(column(game, "player")[at])
            network = policies.get(row["row"])
            kind = "full" if column(game, "full_search")[at] else "cheap"
            found[row["game_id"], row["ply"]] = Example(
                state=_position(plan.config, column(game, "selected")[:at]),
                title=(
                    f"{row['game_id']}, ply {row['ply']}: seat {mover + 1} to move, {kind} search",
                    f"hardness {row['hardness']:.2f} nats, most of it {row['reason']}",
                ),
                search=policy,
                network=None if network is None else network[0],
                search_value=None
                if plan.champion is None
                else float(column(game, "search_value")[at, mover]),
                network_value=None if network is None else network[1],
            )
    return [found[row["game_id"], row["ply"]] for row in hard]


def _position(config: str, selected: NDArray[np.int64]) -> State:
    """The position of the decision after these; what lies between two decisions was forced."""
    from ringrift_pipeline.game import new_game

    state = new_game(config)
    for code in [*selected.tolist(), None]:
        while len(codes := state.legal_codes()) == 1:
            state = state.apply_code(codes[0])
        if code is not None:
            state = state.apply_code(code)
    return state

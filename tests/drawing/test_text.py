"""Boards for a terminal, and moves in words."""

from __future__ import annotations

import pytest

from ringrift_pipeline.drawing import all_cells, area_of, describe, draw, path_of
from ringrift_pipeline.game import new_game


@pytest.mark.parametrize("config", ["square8_2p", "hex8_3p"])
def test_boards_are_drawn_with_every_cell(config: str) -> None:
    state = new_game(config)
    cells = all_cells(state.rules)
    assert draw(state.to_record(), cells).plain.count("·") == state.rules.num_cells
    move = next(move for move in state.legal_moves() if move.type == "place_ring")
    after = draw(state.apply(move).to_record(), cells).plain
    assert after.count("·") == state.rules.num_cells - 1 and "1x" in after


@pytest.mark.parametrize(
    ("move", "said", "path", "area"),
    [
        ({"type": "skip_capture"}, "skip_capture", [], []),
        ({"type": "place_ring", "to": "3,4", "count": 2}, "to 3,4 count 2", ["3,4"], []),
        (
            {"type": "overtaking_capture", "from": "0,0", "target": "1,1", "to": "3,3"},
            "from 0,0 target 1,1 to 3,3",
            ["0,0", "1,1", "3,3"],
            [],
        ),
        (
            {"type": "choose_line_option", "line": ["0,0", "1,0", "2,0"], "collapse": ["0,0"]},
            "line 0,0 1,0 2,0 collapse 0,0",
            [],
            ["0,0"],
        ),
        ({"type": "process_line", "line": ["0,0"]}, "line 0,0", [], ["0,0"]),
        ({"type": "choose_territory_option", "region": ["5,5"]}, "region 5,5", [], ["5,5"]),
        (
            {
                "type": "recovery_slide",
                "from": "0,0",
                "to": "1,0",
                "mode": "line",
                "extract": "1,0",
            },
            "from 0,0 to 1,0 mode line extract 1,0",
            ["0,0", "1,0", "1,0"],
            [],
        ),
    ],
)
def test_a_move_in_words_and_cells(
    move: dict[str, object], said: str, path: list[str], area: list[str]
) -> None:
    assert describe(move).endswith(said) and describe(move).startswith(str(move["type"]))
    assert path_of(move) == path
    assert area_of(move) == area

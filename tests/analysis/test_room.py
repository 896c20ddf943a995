"""What the room loads, and that its document speaks of all that it understands and says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from ringrift_pipeline.analysis.limits import MAX_MOVES, MAX_VISITS, MAX_WAITING
from ringrift_pipeline.analysis.protocol import PROTOCOL, ActionQuery, AnalysisQuery

from .conftest import Desk, game

DOCUMENT = (Path(__file__).parents[2] / "docs" / "analysis_engine.md").read_text()


def test_importing_the_package_is_cheap_and_the_engine_needs_no_dagster() -> None:
    code = (
        "import sys, ringrift_pipeline.analysis as a; dir(a); "
        "print([m for m in ('torch', 'numba', 'numpy', 'dagster') if m in sys.modules]); "
        "a.Engine, a.serve; print('dagster' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_every_field_is_documented(desk: Desk) -> None:
    fields = {
        field.alias for kind in (AnalysisQuery, ActionQuery) for field in kind.model_fields.values()
    }
    moves, _ = game()
    told = desk.ask(moves=moves, analyzeTurns=[0, len(moves)], includePolicy=True)
    told += desk.ask(action="query_version") + desk.ask(action="query_models")
    told += desk.ask(odd=1, maxVisits=0)
    for one in told:
        info = (one.get("moveInfos") or [{}])[0]
        fields |= {*one, *one.get("rootInfo", {}), *info}
    missing = {name for name in fields if not re.search(rf'[`"]{name}[`"]', DOCUMENT)}
    assert not missing


def test_examples_are_json_and_bounds_are_those_of_the_code() -> None:
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    examples = []
    for block in blocks:
        try:
            examples.append(json.loads(block))
        except ValueError:  # several lines, each an answer
            examples += [json.loads(line) for line in block.splitlines()]
    assert len(examples) == 7 and sum("rootInfo" in example for example in examples) == 3
    queries = re.findall(r"^    (\{.*\})$|`(\{\"id\".*?\})`", DOCUMENT, re.MULTILINE)
    assert len(queries) == 7
    for query in queries:
        json.loads(query[0] or query[1])
    for bound in (MAX_MOVES, MAX_VISITS, MAX_WAITING):
        assert f"{bound:,}" in DOCUMENT
    assert PROTOCOL in DOCUMENT

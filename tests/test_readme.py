"""What the README says can be typed, runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ringrift_pipeline.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


def test_every_verb_is_named_and_every_verb_named_exists() -> None:
    rows = re.findall(r"^\| `ringrift [^|]*\|", README, re.MULTILINE)
    named = set(re.findall(r"`(?:ringrift )?([a-z]+)", "".join(rows)))
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert named == verbs


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`?\(?((?:docs|benchmarks|tests)/[\w.]+\w)", README)))
)
def test_files_named_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_targets_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets

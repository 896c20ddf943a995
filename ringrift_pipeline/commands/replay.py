"""``ringrift replay``: check traces against the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ringrift_pipeline.commands.console import Every, errors, output, print_json, say
from ringrift_pipeline.commands.options import Common, InputError

SHOWN = 10  # differences printed in full


def replay(
    common: Common,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Trace files: .jsonl or .jsonl.gz, one game a line."),
    ],
) -> None:
    """Check traces: every ply must offer the same legal moves and lead to the same state.

    Names the first ply and field that differ. Exit code 0 if all games agree, 1 if one differs,
    2 if a file is no trace.
    """
    from ringrift_pipeline.game import replay_file

    results: list[dict[str, Any]] = []
    for path in files:
        if not path.is_file():
            raise InputError(f"{path} is no file")
        due = Every()

        def seen(number: int, report: Any, path: Path = path, due: Every = due) -> None:
            if number > 1 and (errors.is_terminal or due()):
                errors.print(
                    f"{path.name}: {number} games so far", end="\r" if errors.is_terminal else "\n"
                )

        reports = replay_file(path, seen)
        results += [
            {
                "file": str(path),
                "game": number,
                "config": report.config,
                "plies": report.plies,
                "ok": report.ok,
                "ply": report.ply,
                "field": report.field,
                "detail": report.detail,
            }
            for number, report in enumerate(reports, start=1)
        ]
    different = [result for result in results if not result["ok"]]
    plies = sum(result["plies"] for result in results)
    if common.as_json:
        summary = {"games": len(results), "plies": plies, "different": len(different)}
        print_json({**summary, "differences": different})
    else:
        for result in different[:SHOWN]:
            where = "initial state" if result["ply"] == -1 else f"ply {result['ply']}"
            output.print(
                f"{result['file']} game {result['game']} ({result['config']}): {where}, "
                f"{result['field']}: {result['detail']}",
                markup=False,
                soft_wrap=True,
            )
        if len(different) > SHOWN:
            output.print(f"… and {len(different) - SHOWN} more games that differ")
        agree = len(results) - len(different)
        say(f"{agree} of {len(results)} games agree, {plies} plies checked")
    if different:
        raise typer.Exit(1)

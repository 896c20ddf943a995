"""``ringrift ablate``: does each enhancement help?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ringrift_pipeline.commands.console import output, print_json, progress, say
from ringrift_pipeline.commands.generation import GenerationOption, planned
from ringrift_pipeline.commands.options import Common, InputError
from ringrift_pipeline.commands.stopping import stoppable
from ringrift_pipeline.commands.tables import fits
from ringrift_pipeline.evaluation.ablation_budget import SEEDS, STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping


def ablate(
    common: Common,
    generation: GenerationOption = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=2, help="Paired seeds: runs of every variant.")
    ] = SEEDS,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Optimizer steps of every run.")
    ] = STEPS,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start from fresh weights, not from the generation's parent."),
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=0, help="Worker processes; 0 is one a core. Does not change the runs."
        ),
    ] = 0,
) -> None:
    """Train with and without each enhancement on one generation's data, and compare.

    The newest generation that has been played. Quality weighting, mining, clipping, the learning
    rate's schedule, the moving average of the weights and the ensemble, each off in turn and on
    alone, with the same seeds, are judged on games that no run is trained on: ten runs a seed, some
    80 minutes on two cores for square8_2p with the network of the preset `hour`. Finished runs are
    kept: stopped, it goes on where it was, and more --seeds add runs.
    """
    from ringrift_pipeline.evaluation import ablate as run_ablation

    if common.resume not in ("auto", "never"):
        raise InputError("--resume: an ablation keeps no states in folders; say auto or never")
    store, plan = planned(common, generation, "selfplay_shards")
    with (
        stoppable(lambda: store.remove_own(plan.config)) as should_stop,
        progress("ablation") as report,
    ):
        artefact = run_ablation(
            store,
            plan,
            seeds=seeds,
            steps=steps,
            fresh=fresh,
            workers=workers,
            resume=common.resume,
            progress=report,
            should_stop=should_stop,
        )
    found = artefact.read_json("report.json")
    if common.as_json:
        print_json({"path": str(artefact.path), "digest": artefact.digest, **found})
        return
    _show(found)
    say(f"{artefact.file('ablation.png')}")


def _show(report: Mapping[str, Any]) -> None:
    """The report as a table, on a narrow terminal as one for each measure."""
    measures = list(dict.fromkeys(row["measure"] for row in report["comparisons"]))
    whole = _table(report, measures)
    for table in [whole] if fits(whole) else [_table(report, [name]) for name in measures]:
        output.print(table)
    say(
        f"{report['seeds']} seeds, {report['steps']} steps a run, {report['start']}, judged by "
        f"{report['games']} games ({report['rows']:,} positions). {report['rule']}"
    )
    for note in report["left_out"]:
        say(f"Left out: {note}.")
    for run, why in report["ended_early"].items():
        say(f"{run} ended {why}")


def _table(report: Mapping[str, Any], measures: list[str]) -> Table:
    table = Table(
        title=f"{report['config']} generation {report['generation']:04d}: with it minus without it, below "
        f"0 is better ({report['confidence']:.0%} intervals)"
    )
    for column in ("enhancement", "setting"):
        table.add_column(column)
    for measure in measures:
        table.add_column(measure.replace("_", " "), justify="right")
    table.add_column("verdict")
    lines: dict[tuple[str, str], list[str]] = {}
    for row in report["comparisons"]:
        if row["measure"] not in measures:
            continue
        cell = f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
        if row["verdict"] != "undecided":
            cell = f"[bold]{cell} {row['verdict']}[/bold]"
        lines.setdefault((row["enhancement"], row["setting"]), []).append(cell)
    shown: set[str] = set()
    for (name, setting), cells in lines.items():
        first = name not in shown
        if first and shown:
            table.add_section()
        shown.add(name)
        table.add_row(
            name if first else "", setting, *cells, report["verdicts"][name] if first else ""
        )
    return table

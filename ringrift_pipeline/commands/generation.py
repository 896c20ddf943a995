"""``ringrift selfplay``, ``train`` and ``evaluate``: the parts of one generation, without Dagster.

They make the same artefacts in the same places as the pipeline's steps do, so that the loop, or
the next verb, goes on from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ringrift_pipeline.commands.console import output, print_json, progress, say
from ringrift_pipeline.commands.options import Common, InputError, check_device
from ringrift_pipeline.commands.stopping import stoppable

if TYPE_CHECKING:
    from ringrift_pipeline.selfplay import Plan
    from ringrift_pipeline.store import Artefact, Store

GenerationOption = Annotated[
    int | None,
    typer.Option(
        "--generation", "-g", min=0, help="Which generation. Default: the newest, as the text says."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=0, help="Worker processes; 0 is one a core. Does not change the games."
    ),
]


def selfplay(
    common: Common, generation: GenerationOption = None, workers: WorkersOption = None
) -> None:
    """Play one generation's games.

    The newest generation if its games are not all played yet, else a new one. The champion plays;
    as long as there is none, the one-ply heuristic does. Shards that exist and verify are not
    played again. A new generation has the rate, exploration and games that the trend of the
    ratings asks for (the settings of `feedback`). Ctrl-C (or SIGTERM) stops it; finished shards stay.
    """
    from ringrift_pipeline.evaluation.feedback import next_settings
    from ringrift_pipeline.selfplay import collect, plan_generation, play_shards

    store, settings = common.store(), common.settings()
    if generation is None:
        generation = _next_to_play(store, common)
    settings = next_settings(store, common.config, generation, settings).settings
    with _working(store, common.config, generation) as should_stop:
        plan = plan_generation(store, common.config, generation, settings, should_stop=should_stop)
        if common.device is not None:
            plan = plan.on_device(common.device)
        if common.says_settings and plan.settings != settings:
            say(own_settings_stand(generation))
        say(
            f"{common.config} generation {generation:04d}: {plan.games} games in "
            f"{len(plan.shards)} shard{'s' if len(plan.shards) > 1 else ''}"
        )
        with progress("selfplay") as report:
            play_shards(store, plan, workers=workers, progress=report, should_stop=should_stop)
        artefact = collect(store, plan)
    _show(common, [artefact])


def _next_to_play(store: Store, common: Common) -> int:
    generations = store.generations(common.config)
    if not generations:
        return 0
    newest = generations[-1]
    if common.resume == "never":
        return newest + 1
    played = store.current(common.config, newest, "selfplay_shards", verify=False)
    return newest + 1 if played is not None and _shards_verify(store, common, newest) else newest


def _shards_verify(store: Store, common: Common, generation: int) -> bool:
    """Are all shards of a generation's plan there and undamaged?"""
    from ringrift_pipeline.store import CorruptArtefactError

    for shard in store.read_plan(common.config, generation).get("shards", []):
        try:
            if not store.current(common.config, generation, f"selfplay-shard-{shard['index']:04d}"):
                return False
        except CorruptArtefactError:
            return False
    return True


def train(common: Common, generation: GenerationOption = None) -> None:
    """Train on one generation's games: scores, hard examples, training, average, ensemble,
    calibration.

    The newest generation that has been played. What exists and was made from the same inputs is
    not made again; a training that was stopped goes on where it was. Ctrl-C (or SIGTERM) saves its
    state first.

    On several devices: `--set training.processes=0` starts a process for each CUDA device, another
    number that many; `torchrun --nproc-per-node=2 -m ringrift_pipeline train …` does likewise.
    """
    from ringrift_pipeline import training

    store, plan = planned(common, generation, "selfplay_shards")
    plan = plan.in_processes(common.processes(plan.settings))
    if training.torchrun_rank():  # the first of the processes does all but the training
        with stoppable() as should_stop:
            training.train(store, plan, resume=common.resume, should_stop=should_stop)
        return
    steps: list[tuple[str, Callable[..., Artefact], dict[str, Any]]] = [
        ("quality scores", training.score_games, {}),
        ("hard examples", training.mine_hard_examples, {}),
        ("training", training.train, {"resume": common.resume}),
        ("average", training.average, {}),
        ("ensemble", training.build_ensemble, {}),
        ("calibration", training.calibrate, {}),
    ]
    made = []
    with _working(store, plan.config, plan.generation) as should_stop:
        training.require_fresh(store, plan)
        for title, make, more in steps:
            with progress(title) as report:
                made.append(make(store, plan, progress=report, should_stop=should_stop, **more))
    _show(common, made)


def evaluate(
    common: Common,
    generation: GenerationOption = None,
    promote: Annotated[
        bool,
        typer.Option(
            "--promote",
            help="Make it champion if it passes every blocking check and the gate says so.",
        ),
    ] = False,
) -> None:
    """Play one generation's model against random, heuristic and champion, and ask the gate.

    The newest generation that has been trained.
    """
    from ringrift_pipeline.evaluation import evaluate as evaluate_generation

    store, plan = planned(common, generation, "ema_model")
    with _working(store, plan.config, plan.generation) as should_stop:
        with progress("evaluation") as report:
            artefact = evaluate_generation(store, plan, progress=report, should_stop=should_stop)
        gate = artefact.read_json("report.json")["gate"]
        decided = _promote(store, artefact, should_stop) if promote else None
    _show(common, [artefact], {"gate": gate} | (decided or {}))
    if common.as_json:
        return
    if decided is None:
        verdict = "would be promoted" if gate["promote"] else "would not be promoted"
        say(f"The gate: it {verdict}. " + "; ".join(gate["reasons"]))
    else:
        verdict = "is champion" if decided["promoted"] else "is not promoted"
        say(f"Generation {plan.generation:04d} {verdict}. " + "; ".join(decided["reasons"]))


def _promote(store: Store, evaluation: Artefact, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """What the loop does with an evaluation: its blocking checks, the gate, the champion it met."""
    from ringrift_pipeline.orchestration.checks import objections
    from ringrift_pipeline.orchestration.decisions import promote_evaluated
    from ringrift_pipeline.orchestration.step import Step

    with progress("checks") as report:
        step = Step(evaluation.config, evaluation.generation, store, report, should_stop)
        found = objections(step)
    if found:
        return {"promoted": False, "reasons": found}
    promoted, reasons = promote_evaluated(store, evaluation, run_id=None)
    return {"promoted": promoted, "reasons": reasons}


@contextmanager
def _working(store: Store, config: str, generation: int) -> Iterator[Callable[[], bool]]:
    """The lock of a generation, and whether its work is to stop."""
    with (
        store.lock(config, f"generation-{generation:04d}"),
        stoppable(lambda: store.remove_own(config)) as should_stop,
    ):
        yield should_stop


def planned(common: Common, generation: int | None, needed: str) -> tuple[Store, Plan]:
    """The generation that a verb works on, by default the newest that has what is ``needed``.

    Its own plan says with which settings; only the device may be another one.
    """
    from ringrift_pipeline.selfplay import load_plan

    store = common.store()
    generations = store.generations(common.config)
    if not generations:
        raise InputError(
            f"{common.config} has no games in {store.root} yet: ringrift selfplay --config "
            f"{common.config} plays some"
        )
    if generation is None:
        ready = store.newest(common.config, needed)
        generation = generations[-1] if ready is None else ready
    elif generation not in generations:
        raise InputError(
            f"{common.config} has no generation {generation:04d} in {store.root}, only "
            f"{generations[0]:04d} to {generations[-1]:04d}"
        )
    plan = load_plan(store, common.config, generation)
    if common.device is not None:
        plan = plan.on_device(common.device)
    check_device(plan.settings.device)
    # in how many processes a training is made is no part of its plan
    same = {"training.processes": plan.settings.training.processes}
    if common.says_settings and common.settings().with_overrides(same) != plan.settings:
        say(own_settings_stand(generation))
    return store, plan


def own_settings_stand(generation: int) -> str:
    """Said where settings are named for a generation that has a plan already."""
    return (
        f"generation {generation:04d} was planned before, and keeps the settings of its plan: what is "
        "named now, by flags or in the environment, is for the generations after it"
    )


def _show(common: Common, artefacts: list[Artefact], more: dict[str, Any] | None = None) -> None:
    """The numbers of what was made."""
    if common.as_json:
        print_json(
            {
                "config": common.config,
                "generation": artefacts[0].generation,
                "artefacts": {
                    artefact.kind: {
                        "path": str(artefact.path),
                        "digest": artefact.digest,
                        "numbers": _numbers(artefact),
                    }
                    for artefact in artefacts
                },
                **(more or {}),
            }
        )
        return
    table = Table(title=f"{common.config} generation {artefacts[0].generation:04d}")
    for column in ("artefact", "number", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for artefact in artefacts:
        for name, value in _numbers(artefact).items():
            text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            table.add_row(artefact.kind, name, text)
        table.add_section()
    output.print(table)


def _numbers(artefact: Artefact) -> dict[str, float | int]:
    return {
        name: value
        for name, value in artefact.metadata.items()
        if "/" in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }

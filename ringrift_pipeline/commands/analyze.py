"""``ringrift analyze``: positions analysed for other front ends, JSON lines in and out."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ringrift_pipeline.analysis.limits import MAX_VISITS
from ringrift_pipeline.commands.console import say
from ringrift_pipeline.commands.options import Common, InputError

DEFAULT_PLAYER = "champion"


def analyze(
    common: Common,
    player: Annotated[
        str | None,
        typer.Option(
            "--player",
            "-p",
            metavar="SPEC",
            help="Who analyses where a query names nobody: random, heuristic, rollout, champion, "
            "generation:0007 or a model's folder. Default: champion.",
        ),
    ] = None,
    simulations: Annotated[
        int | None,
        typer.Option(
            "--simulations",
            min=1,
            max=MAX_VISITS,
            help="Simulations a position where a query has no maxVisits. Default: the setting.",
        ),
    ] = None,
    quit_without_waiting: Annotated[
        bool,
        typer.Option(
            "--quit-without-waiting",
            help="At the end of input, stop at once instead of answering what still waits.",
        ),
    ] = False,
) -> None:
    """Analyse positions for another program: one JSON query a line in, one JSON answer a line out.

    The protocol is like that of KataGo's analysis engine; docs/analysis_engine.md describes it.
    Standard output has answers only.
    """
    settings = common.settings()
    from ringrift_pipeline.analysis import Ending, Engine, Roster, claimed_stdout, serve
    from ringrift_pipeline.analysis.protocol import QueryError

    visits = simulations or settings.search.simulations
    if visits > MAX_VISITS:
        raise InputError(f"search.simulations is {visits}: at most {MAX_VISITS} here")
    spec = player or DEFAULT_PLAYER
    roster = Roster(
        spec,
        data=common.root,
        device=settings.device,
        seed=settings.seed,
        settings=settings.search,
    )
    with claimed_stdout() as answers:
        try:
            roster.player(spec, common.config, visits)
        except QueryError as error:
            if player is not None:  # a default that is not there may never be asked for
                raise InputError(f"--player {spec}: {error}") from error
            say(f"{error} (or let every query name a player)")
        say(f"ready: {common.config}, {spec}, {visits} simulations a position")
        ending = serve(
            lambda emit: Engine(common.config, visits, roster, emit),
            # a stream of its own: its reader may still wait when the interpreter ends
            os.fdopen(os.dup(0), "rb"),
            answers,
            wait=not quit_without_waiting,
        )
    if ending is Ending.STOPPED:
        raise KeyboardInterrupt

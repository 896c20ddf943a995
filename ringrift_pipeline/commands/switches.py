"""``ringrift pause`` and ``ringrift resume``: what a config does by itself."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ringrift_pipeline.commands.console import print_json, say
from ringrift_pipeline.commands.options import Common, InputError
from ringrift_pipeline.orchestration.configs import CONFIGS

AllOption = Annotated[bool, typer.Option("--all", help="All twelve configs, not only --config.")]
OnlyOption = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="NAMES",
        help="Some of loop, nightly, gauntlet, with commas between. Default: all three.",
    ),
]


def pause(common: Common, everybody: AllOption = False, only: OnlyOption = None) -> None:
    """Let a config rest: nothing starts by itself for it until it is resumed.

    The running generation is finished and its model promoted if the gate says so; the next one is
    not started (loop), and the schedules pass it over (nightly, gauntlet). What is launched by
    hand in the UI still runs. Works beside a running loop or UI, and outlives both.
    """
    _turn(common, everybody, only, on=False)


def resume(common: Common, everybody: AllOption = False, only: OnlyOption = None) -> None:
    """Let a paused config go on: the next generation starts as soon as a daemon runs.

    That is `ringrift loop` or `ringrift ui`. One whose run was cancelled stays so: `ringrift status`
    names it, `ringrift loop` begins it anew.
    """
    _turn(common, everybody, only, on=True)


def _turn(common: Common, everybody: bool, only: str | None, on: bool) -> None:
    from ringrift_pipeline.store import SWITCHES

    names = [name.strip() for name in only.split(",") if name.strip()] if only else list(SWITCHES)
    for name in names:
        if name not in SWITCHES:
            raise InputError(f"--only {name}: there are {', '.join(SWITCHES)}")
    if not names:
        raise InputError(f"--only names nothing; there are {', '.join(SWITCHES)}")
    store = common.store()
    found: dict[str, dict[str, Any]] = {}
    for config in CONFIGS if everybody else (common.config,):
        if everybody and on and not store.switches(config).paused:
            found[config] = dict.fromkeys(SWITCHES, True)  # nothing to write where nothing rests
            continue
        switches = store.set_switches(config, asked_at=None, **dict.fromkeys(names, on))
        found[config] = {name: getattr(switches, name) for name in SWITCHES}
        if not common.as_json:
            rests = ", ".join(switches.paused)
            say(f"{config}: {f'paused: {rests}' if rests else 'goes on, nothing is paused'}")
    if common.as_json:
        print_json(found)

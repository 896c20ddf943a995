"""``ringrift loop``: whole generations through the real Dagster daemon, watched to the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ringrift_pipeline.commands.console import (
    Every,
    clock,
    errors,
    interval,
    output,
    plain,
    print_json,
    say,
    shown,
)
from ringrift_pipeline.commands.generation import own_settings_stand
from ringrift_pipeline.commands.options import Common
from ringrift_pipeline.commands.stopping import stoppable
from ringrift_pipeline.commands.tables import fitting
from ringrift_pipeline.commands.ui import PORT, GamesPage, check_port, ui_line, url
from ringrift_pipeline.enhancements.presets import (
    GENERATIONS,
    GENERATIONS_BY_CONFIG,
    generations_for,
)
from ringrift_pipeline.orchestration.presence import announced

if TYPE_CHECKING:
    from ringrift_pipeline.orchestration.loop import GenerationState, LoopRequest, Snapshot
    from ringrift_pipeline.orchestration.summary import GenerationSummary

_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "failed": "✗"}
_STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "failed": "bold red"}
ROWS = 8  # generations in the picture: it has to fit on a terminal, with the steps at work below


def _counts() -> str:
    """How many generations the presets have, for the help."""
    counts = {name: str(count) for name, count in GENERATIONS.items()}
    for name, others in GENERATIONS_BY_CONFIG.items():
        boards = {pattern.removesuffix("_*"): count for pattern, count in others.items()}
        counts[name] += "".join(f", {count} on {board}" for board, count in boards.items())
    return "; ".join(f"{name} {count}" for name, count in counts.items())


def loop(
    common: Common,
    generations: Annotated[
        int | None,
        typer.Option(
            "--generations",
            "-n",
            min=1,
            help="Generations to play to their end. Default: those of the preset "
            f"({_counts()}), else 1.",
        ),
    ] = None,
    with_ui: Annotated[
        bool,
        typer.Option(
            "--ui", help="Serve the Dagster UI meanwhile, and the page of recorded games."
        ),
    ] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of --ui.")] = PORT,
) -> None:
    """Play, score, mine, train, average, ensemble, calibrate, evaluate and gate, again and again.

    Starts the Dagster daemon, submits a generation, lets the sensor start the next ones, and
    stops everything. Called again it goes on from the newest generation. Ctrl-C (or SIGTERM) stops
    it cleanly, a second one at once; what is finished stays.
    """
    settings = common.settings()
    if with_ui:
        check_port("127.0.0.1", port)
    from ringrift_pipeline.orchestration.environment import check_environment
    from ringrift_pipeline.orchestration.loop import LoopRequest
    from ringrift_pipeline.orchestration.switches import refuse_paused
    from ringrift_pipeline.selfplay.finetuning import check_start
    from ringrift_pipeline.selfplay.warm_up import warm_up

    check_environment()
    refuse_paused(common.store(), common.config)  # before anything is made
    check_start(common.store(), common.config, settings)
    if not common.as_json:
        say(f"Everything is kept under {common.root}")
    request = LoopRequest(
        config=common.config,
        data=common.root,
        settings=settings,
        generations=generations or generations_for(common.preset or "", common.config),
        resume=common.resume,
        ui_port=port if with_ui else None,
    )
    with announced("loop", common.root):
        warm_up(common.config)  # once, here, rather than in every step that needs a kernel
        _play(common, request)


def _play(common: Common, request: LoopRequest) -> None:
    """Work off a request, and tell what came of it. Raises LoopError once that is told."""
    from ringrift_pipeline.orchestration.loop import Loop, LoopError

    began = time.monotonic()
    begun: list[Loop] = []
    failure: LoopError | None = None

    def at_once() -> None:
        for work in begun:
            work.kill()

    with stoppable(at_once) as should_stop:
        work = Loop(request, should_stop)
        begun.append(work)
        if common.says_settings and work.planned not in (None, request.settings):
            say(own_settings_stand(work.first))
        _announce(common, work.first, work.last)
        with work, contextlib.ExitStack() as stack:
            page = None
            if request.ui_port is not None:
                page = stack.enter_context(GamesPage(common.root))
                say(f"Dagster UI: {url(common.config, request.ui_port)}")
                say(page.says)
            try:
                _watch(work, page)
            except LoopError as error:
                failure = error
            except KeyboardInterrupt:
                say("stopping the daemon …; the same command goes on from here")
                raise
            say("stopping the daemon …")
    _close(common, work.summaries(), time.monotonic() - began, failure)
    if failure is not None:
        raise failure


def _announce(common: Common, first: int, last: int) -> None:
    which = f"generation {first:04d}" if first == last else f"generations {first:04d} to {last:04d}"
    say(f"{common.config}: {which}. Starting the Dagster daemon …")


def _watch(work: Any, page: GamesPage | None) -> None:
    if errors.is_terminal:
        with Live(console=errors, refresh_per_second=4, transient=True) as live:
            for snapshot in _looked_at(work, page):
                live.update(_picture(snapshot))
        return
    due = Every()
    told: set[tuple[str, str, str]] = set()
    settled: set[int] = set()
    for snapshot in _looked_at(work, page):
        for state in snapshot.generations:
            if state.generation in settled:
                continue
            if state.settled:
                settled.add(state.generation)
            for name, mark in state.assets.items():
                if mark in ("done", "failed") and (state.key, name, mark) not in told:
                    told.add((state.key, name, mark))
                    took = clock(state.seconds[name])
                    say(f"{_stamp(snapshot)} {state.key} | {name} {mark} after {took}")
        if due():
            say(plain(_line(snapshot)))


def _looked_at(work: Any, page: GamesPage | None) -> Iterator[Snapshot]:
    """The loop's snapshots, with a look at the page at each."""
    for snapshot in work.watch():
        if page is not None:
            page.look()
        yield snapshot


def _running(snapshot: Snapshot) -> GenerationState:
    """The generation that is being worked on, or the last one."""
    for state in snapshot.generations:
        if not state.decided:
            return state
    return snapshot.generations[-1]


def _stamp(snapshot: Snapshot) -> str:
    return f"[{clock(snapshot.elapsed)}] {snapshot.config}"


def _line(snapshot: Snapshot) -> str:
    """One line: time, generation, what is done, what runs and how far it is."""
    state = _running(snapshot)
    done = sum(mark == "done" for mark in state.assets.values())
    parts = [f"{_stamp(snapshot)} {state.key}"]
    parts.append(f"{done}/{len(state.assets)} assets" if state.run_id else "waiting for its run")
    for step in state.steps:
        parts.append(f"{_short(step.step)}: {step.message or f'{step.done} of {step.total}'}")
    if not state.steps and state.run_id:
        running = [name for name, mark in state.assets.items() if mark == "running"]
        parts.append(", ".join(running) or state.status)
    return " | ".join(parts)


def _short(step: str) -> str:
    """``square8_2p__selfplay_shards.play[0001]`` -> ``play[0001]``."""
    return step.split("__", 1)[-1].removeprefix("selfplay_shards.")


def _picture(snapshot: Snapshot) -> Group:
    """The same for a terminal: a row of marks a generation, of the newest ones, a bar a running step."""
    rows: list[Any] = []
    count = len(snapshot.generations)
    newest = _running(snapshot).generation - snapshot.generations[0].generation
    end = max(newest + 1, min(ROWS, count))
    first = max(0, end - ROWS)
    if first:
        rows.append(Text(f"{first} before", style="dim"))
    for state in snapshot.generations[first:end]:
        row = Text(f"{snapshot.config} {state.key} ")
        for name, mark in state.assets.items():
            row.append(f" {_MARKS[mark]} {name}", style=_STYLES[mark])
            if mark == "done":
                row.append(f" {clock(state.seconds[name])}", style="dim")
        rows.append(row)
    if end < count:
        rows.append(Text(f"{count - end} to come", style="dim"))
    bars = Table.grid(padding=(0, 1))
    state = _running(snapshot)
    now = time.time()
    for step in state.steps:
        bars.add_row(
            Text(plain(_short(step.step))),
            ProgressBar(
                total=step.total or None, completed=step.done, width=30, pulse=not step.total
            ),
            Text(f"{step.done}/{step.total}" if step.total else ""),
            Text(clock(now - step.started), style="dim"),
            Text(plain(step.message), overflow="ellipsis"),
        )
    rows += [bars, Text(f"{clock(snapshot.elapsed)} since the start", style="dim")]
    return Group(*rows)


def _close(
    common: Common, summaries: list[GenerationSummary], seconds: float, failure: Exception | None
) -> None:
    line = ui_line(common)
    if common.as_json:
        print_json(
            {
                "config": common.config,
                "data": str(common.root),
                "seconds": round(seconds, 1),
                "failure": str(failure) if failure else None,
                "generations": [summary.to_dict() for summary in summaries],
                "ui": line,
            }
        )
        return
    for table in closing_tables(common.config, summaries):
        output.print(table)
    for summary in summaries:
        if summary.promoted is not None:
            verdict = "promoted" if summary.promoted else "not promoted"
            output.print(
                plain(f"{summary.generation:04d} {verdict}: {'; '.join(summary.reasons)}"),
                markup=False,
                soft_wrap=True,
            )
    for summary in summaries:
        if summary.seconds:
            spent = ", ".join(f"{name} {clock(took)}" for name, took in summary.seconds.items())
            output.print(f"{summary.generation:04d} wall time: {spent}", soft_wrap=True)
    ended = "Done in" if failure is None else "Failed after"
    output.print(f"{ended} {clock(seconds)}. To open the UI on this history:")
    output.print(f"  {line}", markup=False, soft_wrap=True)


def closing_tables(
    config: str, summaries: list[GenerationSummary], console: Console = output
) -> list[Table]:
    """What each generation came to, as wide as ``console``."""
    return fitting(
        f"{config}: what each generation came to",
        ["generation", *(name for name, _ in _COLUMNS)],
        [[f"{s.generation:04d}", *(show(s) for _, show in _COLUMNS)] for s in summaries],
        console=console,
        caption="losses: training → held out; calibration error: before → after; in brackets intervals",
    )


_COLUMNS: tuple[tuple[str, Callable[[GenerationSummary], str]], ...] = (
    ("games", lambda s: shown(s.games, ",")),
    ("positions", lambda s: shown(s.positions, ",")),
    ("policy loss", lambda s: _pair(s.train_policy_loss, s.val_policy_loss)),
    ("value loss", lambda s: _pair(s.train_value_loss, s.val_value_loss)),
    ("calibration error", lambda s: _pair(s.ece_before, s.ece_after)),
    ("rating", lambda s: interval(s.rating, s.rating_low, s.rating_high, ".0f")),
    (
        "against random",
        lambda s: interval(s.win_rate_random, s.win_rate_random_low, s.win_rate_random_high, ".0%"),
    ),
    (
        "against heuristic",
        lambda s: interval(
            s.win_rate_heuristic, s.win_rate_heuristic_low, s.win_rate_heuristic_high, ".0%"
        ),
    ),
    ("promoted", lambda s: "–" if s.promoted is None else "yes" if s.promoted else "no"),
)


def _pair(before: float | None, after: float | None) -> str:
    return f"{shown(before, '.3f')} → {shown(after, '.3f')}"

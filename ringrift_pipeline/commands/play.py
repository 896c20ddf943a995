"""``ringrift play``: a page to play and to look at games, or a game in the terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from contextlib import suppress
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringrift_pipeline.commands.console import output, print_json, say
from ringrift_pipeline.commands.options import Common, InputError
from ringrift_pipeline.drawing import COLORS, LEGEND, all_cells, describe, draw, standing
from ringrift_pipeline.orchestration.places import PLAY_PORT

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.training_config import TrainingConfig
    from ringrift_pipeline.game import Move, State
    from ringrift_pipeline.web import Defaults

HUMAN = "human"
LONGEST = 1000  # characters of an answer
UNASKED = 12  # moves listed before anything is typed
LISTED = 40  # moves that contain what was typed, listed before the rest is left to filtering
HELP = (
    "Type a move's number, or part of its text to list only moves that contain it; "
    "? for the list, h for what the players would do, q to give up."
)
PAGE = "The page"


def play(
    common: Common,
    players: Annotated[
        list[str] | None,
        typer.Option(
            "--player",
            "-p",
            metavar="SPEC",
            help="Who sits in the next seat: human, random, heuristic, rollout, champion, "
            "generation:0007 or a model's folder. Repeat it; the last one fills the seats left. "
            "Default: human, then heuristic.",
        ),
    ] = None,
    simulations: Annotated[
        int | None, typer.Option("--simulations", min=1, help="Simulations a searched decision.")
    ] = None,
    swap_rule: Annotated[
        bool, typer.Option("--swap-rule", help="Offer the pie rule (two players only).")
    ] = False,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Play in the terminal, without a browser.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only how the game ends.")] = False,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port to listen on; 0 takes a free one.",
            rich_help_panel=PAGE,
        ),
    ] = PLAY_PORT,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. Any but this machine's own asks for a token.",
            rich_help_panel=PAGE,
        ),
    ] = "127.0.0.1",
    browser: Annotated[
        bool,
        typer.Option(
            "--browser/--no-browser",
            help="Open the page where there is a desktop and no token; its address is printed anyway.",
            rich_help_panel=PAGE,
        ),
    ] = True,
) -> None:
    """Play on a page in the browser, and look at any recorded game there, until Ctrl-C.

    The options are what the page offers first; it can change all but the data root. With
    --terminal the game is in the terminal instead, and so is one that --json or --quiet asks for
    or in which a player is named for every seat.
    """
    specs = seats_of(players, int(common.config[-2]))
    if HUMAN in specs and not sys.stdin.isatty() and common.as_json:
        raise InputError("--json has no room for a person: name a player for every seat")
    settings = common.settings()
    from ringrift_pipeline.game import new_game

    try:
        state = new_game(common.config, swap_rule=swap_rule)
    except ValueError as error:
        raise InputError(str(error)) from error
    simulations = simulations or settings.search.simulations
    if terminal or quiet or common.as_json or HUMAN not in specs:
        _in_terminal(common, settings, state, specs, simulations, quiet)
        return
    from ringrift_pipeline.web import Defaults

    first = Defaults(common.config, tuple(specs), simulations, swap_rule, settings.seed)
    _on_page(common, settings, first, host, port, browser)


def _on_page(
    common: Common,
    settings: TrainingConfig,
    first: Defaults,
    host: str,
    port: int,
    browser: bool,
) -> None:
    """Serve the page until it is told to stop. Raises InputError."""
    from ringrift_pipeline.web import Players, RequestError, create_app, listen, serve
    from ringrift_pipeline.web.players import is_offered

    try:
        listening, access = listen(host, port)
    except OSError as error:
        raise InputError(
            f"port {port} on {host} cannot be used ({error.strerror}); name another with --port, "
            "0 for any"
        ) from None
    with listening:
        named = list(dict.fromkeys(spec for spec in first.players if spec != HUMAN))
        loaded = Players(
            common.root,
            device=settings.device,
            folders=tuple(spec for spec in named if not is_offered(spec)),
            settings=settings.search,
        )
        for spec in named:
            try:
                loaded.load(common.config, spec, first.simulations)
            except RequestError as error:
                raise InputError(f"--{error}") from error
        app = create_app(common.root, access, players=loaded, defaults=first)
        say(f"Play on {access.url()}")
        if not access.local:
            say("Whoever has this address can use this machine; the connection is not encrypted.")
        say("Ctrl-C stops it.")
        # A browser is begun with the address as an argument, which all users can read.
        if browser and access.token is None and _has_desktop():
            webbrowser.open(access.url())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: say("stopped"))  # once the server has
        serve(app, listening)
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(0)  # not to wait for a search that nobody waits for any more


def _has_desktop() -> bool:
    """Whether a browser would open a window (elsewhere it would take over the terminal)."""
    if not sys.stderr.isatty():
        return False
    return sys.platform == "darwin" or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _in_terminal(
    common: Common,
    settings: TrainingConfig,
    state: State,
    specs: list[str],
    simulations: int,
    quiet: bool,
) -> None:
    """Play a game here. Raises InputError for a player that cannot be loaded."""
    from ringrift_pipeline.search import load_player

    with suppress(AttributeError, UnsupportedOperation):  # no file, or begun to be read
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    loaded: dict[int, Any] = {}  # by their place in `specs`
    for place, spec in enumerate(specs):
        if spec == HUMAN:
            continue
        try:
            loaded[place] = load_player(
                spec,
                common.config,
                simulations=simulations,
                seed=settings.seed + place + 1,
                data=common.root,
                device=settings.device,
                settings=settings.search,
            )
        except (ValueError, LookupError, OSError, ImportError) as error:
            raise InputError(f"--player {spec}: {error}") from error
    show = not (quiet or common.as_json)
    if HUMAN in specs:
        output.print(LEGEND, style="dim", markup=False, soft_wrap=True)
    moves: list[dict[str, Any]] = []
    while not state.is_terminal:
        seat = state.current_player or 1
        place = seated(state)[seat - 1]
        legal = state.legal_moves()
        if len(legal) == 1:
            move = legal[0]
        elif place in loaded:
            move = loaded[place].choose(state)
        else:
            _board(state)
            try:
                move = ask(state, legal, loaded)
            except KeyboardInterrupt:
                say(f"given up after {len(moves)} {'ply' if len(moves) == 1 else 'plies'}")
                raise
        record = move.to_record()
        moves.append(record)
        if show:
            output.print(f"{len(moves):>4}  seat {seat} ({specs[place]}): ", end="")
            output.print(describe(record), style=COLORS[seat - 1], markup=False, end="")
            output.print(", the only move" if len(legal) == 1 else "", style="dim")
        state = state.apply(move)
    _result(common, state, specs, moves)


def seats_of(players: list[str] | None, seats: int) -> list[str]:
    """Who sits where; the last one named fills the seats that are left. Raises InputError."""
    specs = list(players) if players else [HUMAN, "heuristic"]
    if len(specs) > seats:
        raise InputError(f"{len(specs)} players were named for {seats} seats")
    return specs + [specs[-1]] * (seats - len(specs))


def seated(state: State) -> list[int]:
    """Of every seat, the place in the list of players of who plays it now: the engine only notes
    that sides were swapped, the players have to change places.
    """
    order = list(range(state.rules.players))
    return order[::-1] if _swapped(state) else order


def _swapped(state: State) -> bool:
    return bool(state.to_record()["resume"]["swapped"])


def _board(state: State) -> None:
    record = state.to_record()
    output.print()
    output.print(draw(record, all_cells(state.rules)), end="", soft_wrap=True)
    output.print(standing(record), end="")
    seat = state.current_player or 1
    output.print(f"seat {seat} to move, {state.phase}", style=f"bold {COLORS[seat - 1]}")


def ask(state: State, legal: list[Move], players: dict[int, Any]) -> Move:
    """The move a person chooses. Raises KeyboardInterrupt when they give up."""
    texts = [describe(move.to_record()) for move in legal]
    everything = list(range(len(legal)))
    _list(texts, everything, UNASKED)
    output.print(HELP, style="dim", markup=False)
    while True:
        answer = read_answer()
        if answer is None:
            output.print("no move has so long a text")
            continue
        if answer in ("q", "quit"):
            raise KeyboardInterrupt
        if answer in ("?", ""):
            _list(texts, everything)
        elif answer == "h":
            _hint(state, players)
        elif answer.isascii() and answer.isdigit():
            if len(answer) < 8 and int(answer) < len(legal):
                return legal[int(answer)]
            output.print(f"there are moves 0 to {len(legal) - 1}")
        else:
            words = answer.split()
            shown = [i for i, text in enumerate(texts) if all(word in text for word in words)]
            if len(shown) == 1:
                return legal[shown[0]]
            _list(texts, shown, LISTED)


def read_answer() -> str | None:
    """A line from the keyboard or a pipe, None for one of more than `LONGEST` characters.

    Raises KeyboardInterrupt at the end of the input.
    """
    if sys.stdin.isatty():  # the terminal bounds a line, and lets it be edited
        try:
            line = input("move> ") + "\n"
        except EOFError:
            line = ""
    else:
        sys.stdout.write("move> ")
        sys.stdout.flush()
        line = sys.stdin.readline(LONGEST + 1)
    if not line:
        output.print("")  # behind what asks for a move
        say("the input has ended")
        raise KeyboardInterrupt
    if len(line) <= LONGEST or line.endswith("\n"):
        return line.strip()
    while (more := sys.stdin.readline(1 << 16)) and not more.endswith("\n"):
        pass
    return None


def _list(texts: list[str], shown: list[int], most: int | None = None) -> None:
    for index in shown[:most]:
        output.print(f"{index:>4}  {texts[index]}", markup=False)
    if most is not None and len(shown) > most:
        output.print(f"      … {len(shown) - most} more; type part of a move, or ? for all")
    if not shown:
        output.print("      no move contains that; ? lists all")


def _hint(state: State, players: dict[int, Any]) -> None:
    if not players:
        output.print("nobody else plays")
        return
    player = next(iter(players.values()))
    analysis = player.analyze(state)
    ranked = sorted(zip(analysis.policy, analysis.moves, strict=True), key=lambda pair: -pair[0])
    for share, move in ranked[:5]:
        output.print(f"  {share:>4.0%}  {describe(move.to_record())}", markup=False)
    chances = ", ".join(f"seat {seat} {share:.0%}" for seat, share in enumerate(analysis.value, 1))
    calibrated = player.value_temperature != 1.0
    output.print(f"  chances: {chances}{' (calibrated)' if calibrated else ''}", markup=False)


def _result(common: Common, state: State, specs: list[str], moves: list[dict[str, Any]]) -> None:
    """Say how it ended; the players are told as they sat at the end, seat by seat."""
    names = [specs[place] for place in seated(state)]
    if common.as_json:
        print_json(
            {
                "config": common.config,
                "players": names,
                "swapped": _swapped(state),
                "winner": state.winner,
                "ranking": state.ranking(),
                "reason": state.reason,
                "plies": len(moves),
                "moves": moves,
            }
        )
        return
    _end_board(state)
    order = " > ".join(
        " = ".join(f"seat {seat} ({names[seat - 1]})" for seat in group)
        for group in state.ranking()
    )
    swap = ", sides swapped" if _swapped(state) else ""
    ending = f"{state.reason} after {len(moves)} plies{swap}: {order}"
    output.print(ending, markup=False, soft_wrap=True)


def _end_board(state: State) -> None:
    record = state.to_record()
    output.print(draw(record, all_cells(state.rules)), end="", soft_wrap=True)
    output.print(standing(record), end="")

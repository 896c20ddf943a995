"""``ringrift``: the command line. Every verb says what it does with ``--help``.

Exit codes: 0 done, 1 it failed on the way, 2 bad input (one line says what), 130 stopped.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ringrift_pipeline.commands.options import with_common
from ringrift_pipeline.orchestration.places import SAFE_PATH

app = typer.Typer(
    name="ringrift",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Self-play training for the board game RingRift: it plays itself, learns from the games, "
    "and keeps a new model only if it is better.",
    epilog="Start with: ringrift loop --config square8_2p --generations 2 --preset smoke",
)


def _version(value: bool) -> None:
    if value:
        from ringrift_pipeline import __version__

        typer.echo(f"ringrift {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _add_verbs() -> None:
    from ringrift_pipeline.commands import (
        ablate,
        analyze,
        export,
        generation,
        loop,
        play,
        replay,
        status,
        switches,
        ui,
    )
    from ringrift_pipeline.commands.settings_help import SettingsCommand

    trains = (loop.loop, generation.selfplay, generation.train, generation.evaluate)
    others = (ablate.ablate, play.play, analyze.analyze, replay.replay, export.export, ui.ui)
    for verb in (*trains, *others, status.status, switches.pause, switches.resume):
        app.command(cls=SettingsCommand if verb in trains else None)(with_common(verb))


_add_verbs()

# typer brings its own copy of click, or uses the installed one: ask its exported class.
_UsageError: Any = typer.BadParameter.__mro__[1]
_ClickException: Any = _UsageError.__mro__[1]


def _bad_input(error: BaseException) -> bool:
    """Is it something the person at the keyboard can put right?"""
    from ringrift_pipeline.commands.options import InputError
    from ringrift_pipeline.enhancements.training_config import ConfigError
    from ringrift_pipeline.store import StoreError

    kinds: list[type[BaseException]] = [InputError, ConfigError, StoreError]
    named = {
        "ringrift_pipeline.network.errors": ("MissingBackendError",),
        "ringrift_pipeline.selfplay.plan": ("PlanError",),
        "ringrift_pipeline.training.loop": ("ResumeError",),
        "ringrift_pipeline.training.processes": ("ProcessesError",),
        "ringrift_pipeline.training.staleness": ("StaleWindowError",),
        "ringrift_pipeline.evaluation.ablation_runs": ("AblationError",),
        "ringrift_pipeline.evaluation.evaluating": ("EvaluationError",),
        "ringrift_pipeline.game.compile": ("KernelCacheError",),
        "ringrift_pipeline.game.errors": ("RecordError", "IllegalMoveError"),
        "ringrift_pipeline.search.errors": ("PlayerSpecError", "SearchError"),
        "ringrift_pipeline.orchestration.instance_file": ("InstanceFileError",),
        "ringrift_pipeline.orchestration.notify": ("WebhookUrlError",),
        "ringrift_pipeline.orchestration.pools": ("PoolError",),
        "ringrift_pipeline.orchestration.retention": ("BudgetError",),
        "ringrift_pipeline.orchestration.schedules": ("TimeZoneError",),
    }
    for module, names in named.items():  # only what is loaded can have been raised
        loaded = sys.modules.get(module)
        kinds += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return isinstance(error, tuple(kinds))


def _failed(error: BaseException) -> bool:
    """Is it a failure that is explained in its own words (no traceback needed)?"""
    named = {
        "ringrift_pipeline.store.errors": ("BucketError",),
        "ringrift_pipeline.orchestration.loop": ("LoopError",),
        "ringrift_pipeline.orchestration.services": ("ServiceError",),
        "ringrift_pipeline.evaluation.ablation": ("AblationFailed",),
        "ringrift_pipeline.evaluation.tournament": ("TournamentError",),
        "ringrift_pipeline.enhancements.non_finite": ("NonFiniteStepError",),
        "ringrift_pipeline.enhancements.replicas": ("ReplicaError",),
        "ringrift_pipeline.network.checkpoint": ("NonFiniteModelError",),
        "ringrift_pipeline.network.errors": ("NonFiniteOutputError",),
        "ringrift_pipeline.training.window": ("WindowError",),
        "ringrift_pipeline.selfplay.shards": ("ShardError",),
        "ringrift_pipeline.selfplay.workers": ("SelfplayError",),
        "ringrift_pipeline.selfplay.stopping": ("Interrupted",),
    }
    kinds: list[type[BaseException]] = []
    for module, names in named.items():
        loaded = sys.modules.get(module)
        kinds += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return isinstance(error, tuple(kinds))


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


_AGAIN = "what had landed is kept, the same command goes on from there"
DISK = {
    errno.ENOSPC: f"make room, {_AGAIN}",
    errno.EDQUOT: f"make room, {_AGAIN}",
    errno.EROFS: f"mount it for writing or name another --data, {_AGAIN}",
    errno.EACCES: f"let this user read and write it or name another --data, {_AGAIN}",
    errno.EPERM: f"let this user read and write it or name another --data, {_AGAIN}",
    errno.ENOTDIR: "part of it is a file: name another --data",
    errno.EIO: f"look after the disk, {_AGAIN}",
}
"""What the disk itself refuses, and what to do."""


def _of_a_file(error: OSError) -> bool:
    """Was it a file that was refused? Permission is asked for other things as well."""
    return error.filename is not None or error.errno not in (errno.EACCES, errno.EPERM)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        code = app(
            args=list(arguments) if arguments is not None else None,
            prog_name="ringrift",
            standalone_mode=False,
        )
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("ringrift: stopped", err=True)
        return 130
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "ringrift"
        message = _one_line(error.format_message())
        if not message:  # no arguments at all: the help has been printed
            return 2
        typer.echo(f"{where}: {message} (see {where} --help)", err=True)
        return 2
    except Exception as error:
        if _bad_input(error):
            typer.echo(f"ringrift: {_one_line(str(error))}", err=True)
            return 2
        if _failed(error):
            typer.echo(f"ringrift: {str(error).strip()}", err=True)
            return 1
        if isinstance(error, OSError) and error.errno in DISK and _of_a_file(error):
            typer.echo(f"ringrift: {_one_line(str(error))}: {DISK[error.errno]}", err=True)
            return 1
        raise


def main() -> None:
    """Entry point of the ``ringrift`` script. What it starts, the workers of a selfplay among it,
    imports nothing from the current folder.
    """
    os.environ.update(SAFE_PATH)
    sys.exit(run())


if __name__ == "__main__":
    main()

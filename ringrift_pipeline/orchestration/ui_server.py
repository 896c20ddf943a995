"""The Dagster UI, behind the guard that its own server lacks (`web.ui_guard`)."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Sequence

from dagster import DagsterInstance
from dagster._cli.workspace.cli_target import workspace_opts_to_load_target
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._utils.log import configure_loggers
from dagster_shared.cli import WorkspaceOpts
from dagster_webserver import __version__
from dagster_webserver.app import create_app_from_workspace_process_context

from ringrift_pipeline.orchestration.places import CODE, TOKEN_VARIABLE
from ringrift_pipeline.web import Access, UIGuard, bind, serve
from ringrift_pipeline.web.guard import is_local

# As `dagster-webserver` has them.
_STATEMENT_TIMEOUT = 15_000  # ms
_POOL_RECYCLE = 3600  # s
_POOL_OVERFLOW = 20
_POLL_RATE = 2000  # ms


def serve_ui(arguments: Sequence[str]) -> None:
    """Serve the UI of the instance in ``DAGSTER_HOME`` until SIGINT or SIGTERM.

    Args:
        arguments: ``-w FILE`` or ``-m MODULE``, ``--host HOST --port PORT``.

    Raises:
        SystemExit: others than this machine's users could connect, and there is no token.
        OSError: the address cannot be had.
    """
    parser = argparse.ArgumentParser(prog="webserver", allow_abbrev=False)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-w", dest="workspace", action="append")
    target.add_argument("-m", dest="module_name", action="append")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    given = parser.parse_args(arguments)
    token = os.environ.pop(TOKEN_VARIABLE, None)  # not for the processes that are started here
    if token is None and not is_local(given.host):
        raise SystemExit(f"a server on {given.host} needs a token: ringrift ui makes one")
    configure_loggers(log_level="INFO")
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # the code server ends as well
    folder = str(CODE) if given.module_name else None
    wanted = WorkspaceOpts(
        workspace=given.workspace, module_name=given.module_name, working_directory=folder
    )
    with contextlib.suppress(KeyboardInterrupt), DagsterInstance.get() as instance:
        instance.optimize_for_webserver(_STATEMENT_TIMEOUT, _POOL_RECYCLE, _POOL_OVERFLOW)
        with WorkspaceProcessContext(
            instance,
            workspace_load_target=workspace_opts_to_load_target(wanted),
            version=__version__,
        ) as workspace:
            pages = create_app_from_workspace_process_context(
                workspace, live_data_poll_rate=_POLL_RATE
            )
            access = Access(given.host, given.port, token)
            with bind(given.host, given.port) as listening:
                serve(UIGuard(pages, access), listening, websockets=True)

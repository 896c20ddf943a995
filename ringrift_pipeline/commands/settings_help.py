"""The end of a verb's ``--help``: every setting with its description, default and bounds."""

from __future__ import annotations

from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from ringrift_pipeline.commands.console import output

HOW = (
    "Every setting, with its default and bounds. Give one as --set NAME=VALUE, as an environment "
    "variable (selfplay.games is RINGRIFT_SELFPLAY__GAMES) or in the file of --settings."
)


class SettingsCommand(TyperCommand):
    """A verb that works with settings: its help ends with all of them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        print_settings()


def print_settings() -> None:
    """All fields of ``TrainingConfig``, one panel a group, on standard output."""
    from ringrift_pipeline.enhancements.training_config import TrainingConfig

    groups = TrainingConfig.groups()
    width = max(len(field.name) for group in groups for field in group.fields)
    output.print(Text(f" {HOW}"))
    for group in groups:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, width=width, style="bold cyan")
        table.add_column()
        for field in group.fields:
            table.add_row(
                field.name, Text.assemble(field.description, " ", (f"({field.limits})", "dim"))
            )
        title = f"{group.name}: {group.description}" if group.name else group.description
        output.print(Panel(table, title=Text(title), title_align="left", border_style="dim"))

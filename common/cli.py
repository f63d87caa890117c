"""The ``crossrec`` command: finds its sub-commands, and turns errors into messages and exit codes.

Sub-commands are entry points of the project's own group ``crossrec.commands``, so that this
package imports neither client nor simulations. Each is a plain function with Typer annotations or a
``typer.Typer``, in a module that imports nothing heavy at its top. The part of a command's
docstring from a line ``Example:`` (or ``Examples:``) on is shown below its options.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from importlib.metadata import EntryPoints, distribution, version
from typing import TYPE_CHECKING, Annotated, Any, cast

import click
import typer
from typer.core import TyperGroup

from common.errors import CrossRecError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND_GROUP = "crossrec.commands"

QUIET_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without it Flower installs the app's dependencies anew at every launch.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # Threads that wait in a busy loop make torch several times slower on a machine that is shared.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What keeps Flower and Ray off the network, and torch's threads polite; set before they load."""


class LogStyleName(StrEnum):
    """Choices of ``--log-style`` of the commands that run for long."""

    text = "text"
    json = "json"


StyleOption = Annotated[
    LogStyleName,
    typer.Option("--log-style", envvar="CROSSREC_LOG_STYLE", help="Of lines on standard error."),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(help="Serve Prometheus metrics and /health at HOST:PORT, to your own operators."),
]

_EXAMPLE_LINE = re.compile(r"^\s*Examples?:+\s*$", re.MULTILINE)


def _registered() -> EntryPoints:
    return distribution("crossrec").entry_points.select(group=COMMAND_GROUP)


class _EntryPointCommands(Mapping[str, click.Command]):
    """The sub-commands by name; only a command that is looked up gets imported."""

    def __init__(self) -> None:
        self._entry_points = {entry.name: entry for entry in _registered()}
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            self._loaded[name] = _as_command(name, self._entry_points[name].load())
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entry_points))

    def __len__(self) -> int:
        return len(self._entry_points)


class _RootGroup(TyperGroup):
    """Loads sub-commands when they are asked for, and reports CrossRec's own errors."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - click's own arguments
        super().__init__(**attributes)
        self.commands = cast("dict[str, click.Command]", _EntryPointCommands())

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        try:
            return super().invoke(ctx)
        except CrossRecError as error:
            if ctx.params["debug"]:
                raise
            from rich.console import Console  # noqa: PLC0415 - needed for an error only

            Console(stderr=True).print(
                f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
            )
            raise typer.Exit(error.exit_code) from None


def _as_command(name: str, loaded: Any) -> click.Command:  # noqa: ANN401 - whatever is registered
    if isinstance(loaded, typer.Typer):
        command: click.Command = typer.main.get_group(loaded)
    else:
        app = typer.Typer(add_completion=False)  # the root command offers it
        app.command()(loaded)
        command = typer.main.get_command(app)
    command.name = name
    _show_examples_last(command)
    return command


def _show_examples_last(command: click.Command) -> None:
    """Move the example of each docstring below the options, line by line."""
    from rich.markup import escape  # noqa: PLC0415 - `crossrec --version` needs no rich

    if command.help and (match := _EXAMPLE_LINE.search(command.help)):
        example = command.help[match.end() :]
        command.help = command.help[: match.start()].rstrip()
        lines = [escape(line.strip()) for line in example.splitlines() if line.strip()]
        # Typer joins the lines of one paragraph: each line becomes its own.
        command.epilog = "\n\n".join(["[bold]Example[/bold]", *lines])
    for sub_command in command.commands.values() if isinstance(command, click.Group) else ():
        _show_examples_last(sub_command)


def _print_version(value: bool) -> None:  # noqa: FBT001 - Typer calls it with the flag
    if value:
        typer.echo(f"crossrec {version('crossrec')}")
        raise typer.Exit


app = typer.Typer(
    cls=_RootGroup,
    no_args_is_help=True,
    # Plain tracebacks: the decorated ones print local variables, and those hold users' data.
    pretty_exceptions_enable=False,
    epilog="[bold]Example[/bold]\n\ncrossrec simulate --epsilon 8 --out runs/first",
)


@app.callback()
def crossrec(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CROSSREC_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train one product recommender across competing shops, with user-level privacy."""
    del debug, show_version  # read by the group and by the option's callback


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``crossrec`` command and leave the process with its exit code.

    Exit codes: 0 done, 2 wrong usage or configuration, 130 interrupted, 1 anything else;
    `CrossRecError` subclasses name their own.

    Args:
        arguments: command line without the program's name; ``None`` reads ``sys.argv``.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    app(args=arguments, prog_name="crossrec")

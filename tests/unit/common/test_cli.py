"""The command line: lazy sub-commands, errors as messages, help with examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, version
from typing import TYPE_CHECKING, Annotated

import click
import pytest
import typer

from common import cli
from common.errors import BudgetExhausted, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAVY = {"flwr", "matplotlib", "numpy", "opacus", "pandas", "ray", "scipy", "torch"}
ERRORS: dict[str, BaseException] = {
    "config": ConfigError("platform.toml: [privacy] epsilon is wrong"),
    "budget": BudgetExhausted(
        would_spend=3.1, budget=3.0, delta=1e-5, unit="user", request="round 2"
    ),
    "interrupt": KeyboardInterrupt(),
    "bug": ZeroDivisionError(),
}


def greet(
    *,
    name: Annotated[str, typer.Option(help="Who to greet.")] = "you",
    error: Annotated[str, typer.Option(help="What to raise.")] = "",
) -> None:
    """Greet someone.

    Example:
        crossrec greet --name [shop]
        crossrec greet
    """
    if error:
        raise ERRORS[error]
    typer.echo(f"hello {name}")


group = typer.Typer(help="Wave and more.\n\nExample:\n    crossrec group wave")


@group.command()
def wave() -> None:
    """Wave.

    Examples:
        crossrec group wave
    """
    typer.echo("waving")


def register(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    found = [EntryPoint(name, value, cli.COMMAND_GROUP) for name, value in targets.items()]
    monkeypatch.setattr(cli, "_registered", lambda: found)


@pytest.fixture(autouse=True)
def _dummy_commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSREC_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    for name in cli.QUIET_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    if "real_commands" not in request.fixturenames:
        register(monkeypatch, greet=f"{__name__}:greet", group=f"{__name__}:group")


@pytest.fixture
def real_commands() -> click.Group:
    """The root command with what the project itself registers."""
    root = typer.main.get_command(cli.app)
    assert isinstance(root, click.Group)
    return root


class Cli:
    """Runs ``crossrec`` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, exit_code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        out, err = self._capsys.readouterr()
        assert exit_info.value.code == exit_code
        return out, err


@pytest.fixture
def crossrec(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_functions_and_typer_applications_are_commands(crossrec: Cli) -> None:
    assert crossrec("greet", "--name", "shop") == ("hello shop\n", "")
    assert crossrec("group", "wave") == ("waving\n", "")


def test_help_lists_commands_with_their_first_line(crossrec: Cli) -> None:
    out, _ = crossrec("--help")
    assert "Greet someone." in out
    assert "Wave and more." in out
    assert out.index("Commands") < out.index("greet") < out.index("group") < out.index("Example")


@pytest.mark.parametrize("arguments", [("greet",), ("group",), ("group", "wave")])
def test_examples_stand_below_the_options_line_by_line(
    crossrec: Cli, arguments: tuple[str, ...]
) -> None:
    out, _ = crossrec(*arguments, "--help")
    assert out.count("Example") == 1
    assert out.index("--help") < out.index("Example")
    shown = [line.strip() for line in out[out.index("Example") :].splitlines()[1:] if line.strip()]
    expected = "crossrec greet --name [shop]\ncrossrec greet"
    assert shown == (expected if arguments == ("greet",) else "crossrec group wave").splitlines()


def test_only_the_command_that_runs_is_imported(
    crossrec: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, greet=f"{__name__}:greet", absent="no.such.module:command")
    assert crossrec("greet") == ("hello you\n", "")


def test_version(crossrec: Cli) -> None:
    assert crossrec("--version") == (f"crossrec {version('crossrec')}\n", "")


def test_a_misspelt_command_is_refused_with_the_nearest(crossrec: Cli) -> None:
    _, err = crossrec("gret", exit_code=2)
    assert "Did you mean 'greet'?" in err


@pytest.mark.parametrize("error", ["config", "budget"])
def test_own_errors_are_a_message_and_their_exit_code(crossrec: Cli, error: str) -> None:
    raised = ERRORS[error]
    _, err = crossrec("greet", "--error", error, exit_code=raised.exit_code)  # type: ignore[attr-defined]
    assert err == f"error: {raised}\n"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        cli.main(["--debug", "greet", "--error", "config"])
    monkeypatch.setenv("CROSSREC_DEBUG", "1")
    with pytest.raises(ConfigError):
        cli.main(["greet", "--error", "config"])


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["greet", "--error", "bug"])


def test_an_interrupt_exits_130(crossrec: Cli) -> None:
    crossrec("greet", "--error", "interrupt", exit_code=130)


def test_flower_stays_off_the_network_unless_told_otherwise(
    crossrec: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "0")
    crossrec("greet")
    found = {name: os.environ[name] for name in cli.QUIET_ENVIRONMENT}
    assert found == cli.QUIET_ENVIRONMENT | {"FLWR_DISABLE_UPDATE_CHECK": "0"}


def walk(context: click.Context) -> Iterator[click.Context]:
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name, sub_command in command.commands.items():
            yield from walk(click.Context(sub_command, info_name=name, parent=context))


def test_every_real_command_has_help_with_an_example(
    real_commands: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = list(walk(click.Context(real_commands, info_name="crossrec")))
    assert len(contexts) > 1
    for context in contexts:
        assert context.command.help, f"{context.command_path} has no help text"
        click.echo(context.get_help())
        out, _ = capsys.readouterr()
        _, _, example = out.partition("Example")
        assert context.command_path in example, f"{context.command_path} has no example"
        undocumented = [
            parameter.name
            for parameter in context.command.params
            if isinstance(parameter, click.Option) and not parameter.help
        ]
        assert not undocumented, f"{context.command_path}: options without help"


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import json, sys\n"
        "from common.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout
    assert not HEAVY & set(json.loads(done.stderr))

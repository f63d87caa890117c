"""What the README shows exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer

from common.cli import app

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_every_option_of_every_shown_command_exists() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    shown = re.findall(r"^crossrec (\w.*?)(?:  +#.*)?$", TEXT, re.MULTILINE)
    assert len(shown) >= 9
    for line in shown:
        command: click.Command = root
        words = line.split()
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, line
            command, words = found, words[1:]
        arguments = " ".join(words)
        known = {flag for p in command.params for flag in p.opts} | {"--help"}
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known, arguments


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [("simulate", "## Simulate", "## Compare"), ("compare", "## Compare", "## Deploy")],
)
def test_the_flags_named_in_the_text_exist(name: str, begin: str, end: str) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    command = root.get_command(click.Context(root), name)
    assert command is not None
    known = {flag for p in command.params for flag in p.opts}
    section = TEXT.split(begin)[1].split(end)[0]
    found = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", section)) - {"--help"}
    assert found
    assert found <= known


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_linked_files_exist(target: str) -> None:
    assert (README.parent / target).exists()

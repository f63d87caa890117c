"""A configuration file is read as meant, or refused with a message that names the place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from common.config import dump_config, load_config, parse_config
from common.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Privacy:
    epsilon: float
    delta: float = 1e-5
    unit: Literal["user", "interaction", "platform"] = "user"
    level: Literal[1, 2] = 1
    max_rounds: int | None = None

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise ValueError(f"epsilon is {self.epsilon:g}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    folder: Path = Path("state")
    is_strict: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    name: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    name: str
    privacy: Privacy
    state: State = field(default_factory=State)
    hidden: tuple[int, ...] = (32, 16)
    span: tuple[float, str] = (1.0, "days")
    peers: tuple[Peer, ...] = ()


VALID = """
name = "t1"
hidden = [64, 32]

[privacy]
epsilon = 8

[state]
folder = "private/state"

[[peers]]
name = "s1"
port = 8000
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "platform.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), Settings)
    return str(caught.value)


def test_a_file_becomes_its_dataclass(tmp_path: Path) -> None:
    settings = load_config(write(tmp_path, VALID), Settings)
    assert settings == Settings(
        name="t1",
        hidden=(64, 32),
        privacy=Privacy(epsilon=8.0),
        state=State(folder=tmp_path / "private/state"),
        peers=(Peer(name="s1", port=8000),),
    )
    assert type(settings.privacy.epsilon) is float


def test_absolute_paths_stay(tmp_path: Path) -> None:
    text = VALID.replace("private/state", "/srv/state")
    assert load_config(write(tmp_path, text), Settings).state.folder == Path("/srv/state")


def test_without_a_folder_paths_stay_relative() -> None:
    state = parse_config({"folder": "a/b"}, State, "options")
    assert state.folder == Path("a/b")


@pytest.mark.parametrize(
    ("before", "after", "place", "rest"),
    [
        ("epsilon = 8", "epsilonn = 8", "[privacy]", "unknown key 'epsilonn', did you mean 'epsi"),
        ("[privacy]", "[privcy]", "", "unknown section 'privcy', did you mean 'privacy'?"),
        ('name = "t1"', 'nam = "t1"', "", "unknown key 'nam', did you mean 'name'?"),
        ("epsilon = 8", "", "[privacy] epsilon", "is missing; add `epsilon = ...` with a number"),
        ("[privacy]\nepsilon = 8", "", "[privacy] epsilon", "is missing"),
        ("epsilon = 8", 'epsilon = "high"', "[privacy] epsilon", "found 'high', expected a number"),
        ("epsilon = 8", "epsilon = true", "[privacy] epsilon", "found true, expected a number"),
        ("epsilon = 8", f"epsilon = 1{'0' * 400}", "[privacy] epsilon", "expected a number"),
        ("epsilon = 8", "epsilon = 8\nlevel = true", "[privacy] level", "expected one of 1, 2"),
        ("epsilon = 8", "epsilon = -1", "[privacy]", "epsilon is -1, expected more than 0"),
        ("epsilon = 8", 'epsilon = 8\nunit = "users"', "[privacy] unit", "did you mean 'user'?"),
        ("epsilon = 8", "epsilon = 8\nunit = 1", "[privacy] unit", "expected one of 'user', 'int"),
        ("epsilon = 8", "epsilon = 8\nmax_rounds = 1.5", "[privacy] max_rounds", "a whole number"),
        ("[64, 32]", "[64, 3.5]", "hidden[1]", "found 3.5, expected a whole number"),
        ("[64, 32]", "64", "hidden", "found 64, expected an array of a whole number"),
        ("hidden = [64, 32]", "span = [1.0]", "span", "has 1 values, expected exactly 2"),
        ("port = 8000", "port = false", "[peers[0]] port", "found false, expected a whole number"),
        ("[privacy]\nepsilon = 8", "[[privacy]]", "privacy", "found an array, expected a section"),
        ('folder = "private/state"', "folder = 3", "[state] folder", "found 3, expected a path"),
        ('folder = "private/state"', "is_strict = 1", "[state] is_strict", "expected true or fals"),
    ],
)
def test_a_mistake_names_file_place_and_cure(
    tmp_path: Path, before: str, after: str, place: str, rest: str
) -> None:
    assert before in VALID
    message = refused(tmp_path, VALID.replace(before, after))
    assert message.startswith(f"{tmp_path / 'platform.toml'}: {place}")
    assert rest in message


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    assert "line 2" in refused(tmp_path, 'name = "t1"\nprivacy = nothing\n')


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.toml", Settings)
    path = tmp_path / "latin1.toml"
    path.write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ConfigError, match=r"latin1\.toml: is not valid TOML"):
        load_config(path, Settings)


def test_none_is_written_only_where_reading_gives_it_back() -> None:
    assert "max_rounds" not in dump_config(Privacy(epsilon=1.0))

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Limited:
        max_rounds: int | None = 5

    with pytest.raises(ConfigError, match="max_rounds: cannot be written"):
        dump_config(Limited(max_rounds=None))

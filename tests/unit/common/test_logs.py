from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from common.errors import DataError
from common.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.logs import LogLevel, LogStyle

STYLES: tuple[LogStyle, ...] = ("text", "json")
SECRET = "u007-alice@example.org"  # noqa: S105 - a user id


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("flwr")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def configured(style: LogStyle, level: LogLevel = "INFO") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(style, level=level, names={"platform": "shop-a"}, stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def failed(error: Exception) -> None:
    try:
        try:
            raise error
        except KeyError:
            raise RuntimeError(SECRET) from error
    except Exception:
        logging.getLogger("client.platform").exception("could not adapt")


def test_a_json_line_is_one_object_that_says_when_where_what_and_whose() -> None:
    stream = configured("json")
    logging.getLogger("client.platform").warning("%s declined\n%d", "nörth", 3)
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "client.platform",
        "message": "nörth declined\n3",
        "platform": "shop-a",
    }


def test_a_line_of_text_cannot_be_forged_by_what_another_side_sent() -> None:
    stream = configured("text")
    logging.getLogger("server").warning("reply of %s", "a\n2026-01-01T00:00:00.000Z ERROR x\x1b[2J")
    line, below = stream.getvalue().splitlines()
    assert line.endswith("WARNING server platform=shop-a: reply of a")
    assert below == r"    | 2026-01-01T00:00:00.000Z ERROR x\x1b[2J"


@pytest.mark.parametrize("breaking", ["\r", "\x0b", "\x0c", "\x85", "\u2028", "\r\n", "\x9b"])
def test_every_line_but_the_first_is_indented_whatever_breaks_it(breaking: str) -> None:
    stream = configured("text")
    forged = f"a{breaking}2026-01-01T00:00:00.000Z ERROR x"
    logging.getLogger("server").warning("%s", forged)
    failed(DataError(forged, source=forged, found=forged, expected=forged))
    shown = stream.getvalue()
    assert breaking.strip("\n") not in shown
    starts = [line for line in shown.split("\n") if line and not line.startswith("    ")]
    assert [line.split()[1] for line in starts] == ["WARNING", "ERROR"]


def test_the_last_lines_of_a_program_are_read_line_by_line() -> None:
    stream = configured("text")
    lines = 'Traceback:\n  File "a.py", line 3\n\nConfigError: no such key\x1b[31m\n'
    logging.getLogger("client.node").warning("it ended with:\n%s", lines)
    head, *below = stream.getvalue().splitlines()
    assert head.endswith("client.node platform=shop-a: it ended with:")
    assert below == [
        "    | Traceback:",
        '    |   File "a.py", line 3',
        r"    | ConfigError: no such key\x1b[31m",
    ]


def test_the_level_holds_and_a_second_call_replaces_the_first() -> None:
    first, second = configured("json"), configured("json", "WARNING")
    logging.getLogger("x").info("left out")
    logging.getLogger("flwr").info("left out")
    logging.getLogger("flwr").error("kept")
    assert first.getvalue() == ""
    assert [line["message"] for line in lines(second)] == ["kept"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), UnicodeError(SECRET)])
def test_a_foreign_exception_shows_where_it_was_and_not_what_it_quotes(
    style: LogStyle, error: Exception
) -> None:
    stream = configured(style)
    failed(error)
    assert type(error).__name__ in stream.getvalue()
    assert "in failed" in stream.getvalue()
    assert "alice" not in stream.getvalue()
    if isinstance(error, KeyError):
        assert "caused by" in stream.getvalue()
        assert "RuntimeError" in stream.getvalue()


@pytest.mark.parametrize("style", STYLES)
def test_the_level_debug_shows_the_text_of_any_exception(style: LogStyle) -> None:
    stream = configured(style, "DEBUG")
    failed(ValueError(SECRET))
    assert SECRET in stream.getvalue()


@pytest.mark.parametrize("style", STYLES)
def test_our_own_errors_and_the_operating_systems_say_what_to_fix(style: LogStyle) -> None:
    stream = configured(style)
    failed(DataError("no number", source="a.csv", found="'x'", expected="a number", line=7))
    failed(OSError(28, "No space left on device", "/state/ledger"))
    assert "a.csv, line 7: no number" in stream.getvalue()
    assert "No space left on device: /state/ledger" in stream.getvalue()

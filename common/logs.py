"""Where log lines go and how they look: JSON for machines or text for people, on standard error.

The rule for what a line may hold. Lines are collected, copied and kept where user data never would
be. So they name platforms, runs, rounds and outcomes, and nothing that follows from a user: no user
ids, no items of a user, no counts of interactions, no losses, no updates. One exception is made,
for the cause of a failure that the operator has to remove: the text of an error of our own
(:class:`~common.errors.CrossRecError`), which may quote a rating or a date that cannot be read,
with its line, but no id; and that of the operating system, which names files. Any other exception
is written as its type and the places in the code that it came through. Its text may quote anything:
a platform that stopped has it in ``stopped.txt``, and the level ``DEBUG`` shows it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Literal, TextIO

from common.errors import CrossRecError

if TYPE_CHECKING:
    from collections.abc import Mapping

LogStyle = Literal["text", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

LOG_STYLE_VARIABLE = "CROSSREC_LOG_STYLE"
"""Environment variable that stands in for ``--log-style`` of the long-running commands."""

_MOST_CAUSES = 10


def configure_logging(
    style: LogStyle = "text",
    *,
    level: LogLevel = "INFO",
    names: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send every log line of this process, Flower's too, to one place in one style.

    For programs, once, at their start; a second call replaces the first.

    Args:
        style: ``json`` writes one object a line with time, level, logger, message, what ``names``
            says, and exception where there was one; ``text`` writes the same for people, with a
            message's other lines indented below its first.
        level: lines below it are left out; ``DEBUG`` shows the text of any exception.
        names: what to say on every line, such as ``{"platform": "shop-a"}`` or ``{"run": "s1"}``.
        stream: where to write; standard error if left out.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = _JsonFormatter if style == "json" else _TextFormatter
    handler.setFormatter(formatter(dict(names or {}), with_texts=level == "DEBUG"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("httpx", "httpcore"):  # a line for each request
        logging.getLogger(name).setLevel("WARNING")
    # Flower's logger has a handler of its own and lets everything through.
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.setLevel(level)


def configure_child_logging() -> None:
    """As :func:`configure_logging`, in the style that the command which started this one chose."""
    style = os.environ.get(LOG_STYLE_VARIABLE)
    configure_logging("json" if style == "json" else "text")


class _Formatter(logging.Formatter):
    """What both styles have in common: the time, and how an exception is written."""

    converter = staticmethod(time.gmtime)

    def __init__(self, names: Mapping[str, str], *, with_texts: bool) -> None:
        super().__init__()
        self._names = names
        self._with_texts = with_texts

    def facts(self, record: logging.LogRecord) -> dict[str, str]:
        """What a line says, in its order."""
        moment = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        facts = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._names,
        }
        if record.exc_info and record.exc_info[1] is not None:
            facts["exception"] = self._in_words(record.exc_info[1])
        return facts

    def _in_words(self, error: BaseException) -> str:
        if self._with_texts:
            return "".join(traceback.format_exception(error)).rstrip("\n")
        causes: list[str] = []
        cause: BaseException | None = error
        while cause is not None and len(causes) < _MOST_CAUSES:
            causes.append(_without_foreign_text(cause))
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        return "\ncaused by\n".join(causes)


def _without_foreign_text(error: BaseException) -> str:
    kind = type(error).__name__
    if isinstance(error, CrossRecError):
        kind += f": {error}"
    elif isinstance(error, OSError) and error.strerror:
        kind += f": {error.strerror}" + (f": {error.filename}" if error.filename else "")
    places = "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    return f"{places}\n{kind}" if places else kind


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.facts(record), ensure_ascii=False)


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = self.facts(record)
        exception = facts.pop("exception", "")
        message, *quoted = map(on_one_line, facts.pop("message").split("\n"))
        head = " ".join(facts.pop(name) for name in ("time", "level", "logger"))
        names = "".join(f" {name}={on_one_line(value)}" for name, value in facts.items())
        # Indented: no text from elsewhere can pass for a line of ours.
        below = "".join(f"\n    | {line}" for line in quoted if line)
        below += "".join(f"\n    {on_one_line(line)}" for line in exception.splitlines())
        return f"{head}{names}: {message}{below}"


def on_one_line(text: str) -> str:
    """``text`` with line breaks and other control characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

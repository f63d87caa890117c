"""``report.html``, ``report.md`` and ``report.json``: one statement, for everybody to read.

The page needs no network: its figures are inlined. Every value in it is escaped, in HTML by Jinja2
and in Markdown by :func:`markdown_text`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.storage import FOR_ALL, write_durably
from simulations.audit.report import sections
from simulations.audit.report.figures import CAPTIONS, alternative, figures
from simulations.audit.report.statement import REPORT_FILE
from simulations.documents import write_document
from simulations.drawing import save_as_png
from simulations.report import inlined, template_environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from simulations.audit.report.point_tables import Table
    from simulations.audit.report.statement import AuditStatement

HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
FIGURES_FOLDER = "figures"

_BLOCK = re.compile(r"[-+](\s|$)|>|-{2}|={2}")
"""Begins a list, a quotation, a rule or a title when it begins a line."""
_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")


class _Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def write_report(folder: Path, statement: AuditStatement) -> None:
    """Write ``report.json``, ``report.html``, ``report.md`` and its ``figures/`` into ``folder``.

    Raises:
        StateError: if the folder cannot be written.
    """
    write_document(folder / REPORT_FILE, statement)
    drawn = figures(statement)
    page = render_html(statement, {name: inlined(figure) for name, figure in drawn.items()})
    write_durably(folder / HTML_FILE, page.encode(), mode=FOR_ALL)
    save_as_png(drawn, folder / FIGURES_FOLDER)
    text = render_markdown(statement, {name: f"{FIGURES_FOLDER}/{name}.png" for name in drawn})
    write_durably(folder / MARKDOWN_FILE, text.encode(), mode=FOR_ALL)


def render_html(statement: AuditStatement, addresses: Mapping[str, str]) -> str:
    """The report as one HTML document.

    Args:
        statement: what it says.
        addresses: of each figure, by name.
    """
    template = template_environment().get_template("audit.html")
    return template.render(_values(statement, addresses))


def render_markdown(statement: AuditStatement, addresses: Mapping[str, str]) -> str:
    """The same in Markdown; arguments as of :func:`render_html`."""
    environment = Environment(
        loader=PackageLoader("simulations"),
        autoescape=False,  # noqa: S701 - finalize escapes every value, for Markdown
        undefined=StrictUndefined,
        finalize=markdown_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(table=_markdown_table, code=_code_block)
    return environment.get_template("audit.md").render(_values(statement, addresses))


def _values(statement: AuditStatement, addresses: Mapping[str, str]) -> dict[str, object]:
    return {
        "statement": statement,
        "conclusion": statement.conclusion,
        "overview": sections.overview(statement),
        "sections": sections.sections(statement),
        "findings": sections.findings(statement),
        "ledgers": sections.ledgers(statement),
        "glossary": sections.GLOSSARY,
        "figures": {
            name: (CAPTIONS[name], alternative(name, statement), address)
            for name, address in addresses.items()
        },
    }


def markdown_text(value: object) -> str:
    """``value`` as text of one line that Markdown shows as it is: no markup, no HTML, no links."""
    if isinstance(value, _Markdown):
        return value
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    line = _SPECIAL.sub(r"\\\1", line).replace("://", ":&#47;/")
    return f"\\{line}" if _BLOCK.match(line) else line


def _markdown_table(table: Table) -> _Markdown:
    lines = [table.header, ("---",) * len(table.header)]
    rows = [" | ".join(line) for line in (tuple(map(markdown_text, lines[0])), lines[1])]
    rows += [" | ".join(map(markdown_text, row)) for row in table.rows]
    return _Markdown("\n".join(f"| {row} |" for row in rows))


def _code_block(text: str) -> _Markdown:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Markdown(f"{fence}console\n{text}\n{fence}")

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from common.errors import StateError
from simulations.audit.evidence import Evidence, gather
from simulations.audit.report.figures import CAPTIONS, figures
from simulations.audit.report.rendering import (
    markdown_text,
    render_html,
    render_markdown,
    write_report,
)
from simulations.audit.report.statement import POINTS, SCHEMA_VERSION, AuditStatement
from simulations.audit.report.strength import (
    advantage,
    odds_text,
    percent_text,
    posterior,
    strength,
    true_positive_bound,
)
from simulations.documents import read_document
from tests.unit.simulations.audit.audited import (
    attack_result,
    round_request,
    state,
    sum_request,
    verification,
    write_platform,
)
from tests.unit.simulations.run_results import run_result

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }}"
IN_MARKDOWN = "x](http://evil.example) ![y](http://evil.example/i) `z` **b** <b>| a\n# h\n"
VOID = {"meta", "img", "br", "link", "input", "hr"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def statement(tmp_path_factory: pytest.TempPathFactory) -> AuditStatement:
    """Two platforms, rounds, a simulated run with users, an attack, everything."""
    home = tmp_path_factory.mktemp("homes")
    ledgers = [
        write_platform(
            home / name,
            name,
            [sum_request(name, noise=3.0), *(round_request(name, n, 4.0) for n in (1, 2, 3))],
            seed=5,
        )
        for name in ("north", "south")
    ]
    result = home / "result.json"
    users = pd.DataFrame(
        {
            "platform": ["north"] * 4,
            "model": ["local", "local", "federated", "federated"],
            "user": [0, 1, 0, 1],
            "ndcg@10": [0.25, 0.5, 0.5, 0.75],
            "interactions": [2, 12, 2, 12],
            "item_purchases": [0, 30, 0, 30],
        }
    )
    evidence = replace(gather(ledgers, []), results={result: run_result()})
    return state(evidence, verification(names=("north", "south")), attack_result(), {result: users})


@pytest.fixture(scope="module")
def drawn(statement: AuditStatement) -> dict[str, Figure]:
    return figures(statement)


def addresses(drawn: dict[str, Figure]) -> dict[str, str]:
    return dict.fromkeys(drawn, PIXEL)


def test_the_page_is_well_formed_and_loads_nothing_from_anywhere(
    statement: AuditStatement, drawn: dict[str, Figure]
) -> None:
    html = render_html(statement, addresses(drawn))
    page = Page(html)
    assert page.open == []
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import", re.sub(r"base64,[\w+/=]+", "", html))
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert (attributes.get("src") or PIXEL).startswith("data:image/png;base64,")
        assert (attributes.get("href") or "#").startswith("#")
    anchors = {attributes.get("id") for _, attributes in page.tags}
    links = {(a.get("href") or "")[1:] for tag, a in page.tags if tag == "a"}
    assert links <= anchors
    assert links >= set(POINTS)


def test_every_point_stands_in_both_documents(
    statement: AuditStatement, drawn: dict[str, Figure]
) -> None:
    text = Page(render_html(statement, addresses(drawn))).text
    markdown = render_markdown(statement, addresses(drawn))
    for name, title in POINTS.items():
        assert title in text
        assert f"## {markdown_text(title)}" in markdown
        for sentence in getattr(statement, name).text:
            assert sentence in text
            assert markdown_text(sentence) in markdown
    for answer in statement.summary:
        assert answer.question in text
        assert all(paragraph in text for paragraph in answer.text)
        assert f"### {answer.question}" in markdown
    for section in ("Ledgers and grants", "All checks", "How to repeat this", "Glossary"):
        assert section in text
        assert f"## {section}" in markdown
    assert statement.conclusion.line in text
    assert markdown_text(statement.conclusion.line) in markdown


def test_numbers_in_both_documents_are_those_of_the_statement(
    statement: AuditStatement, drawn: dict[str, Figure]
) -> None:
    text = Page(render_html(statement, addresses(drawn))).text
    markdown = render_markdown(statement, addresses(drawn))
    part = statement.platforms["north"]
    assert part.epsilon_for_life is not None
    assert part.posterior_from_half is not None
    assert part.best_guess is not None
    shown = [
        *(percent_text(part.posterior_from_half), percent_text(part.best_guess)),
        *(odds_text(part.epsilon_for_life), strength(part.epsilon_for_life)),
        *("400", "0.25", "0.75", "item-counts", "rounds"),  # population, clip, own noise
        *("2.812", "2.811", "3.113", "4.22"),  # prices, and what two accounts cost
        *("1.25", "1.43", "95%", "1,021", "222", "333", "1.23%", "0.731"),  # the attack
        *("+0.2500", "0.3750", "0.6250"),  # utility
        *("crossrec audit report", "platform.toml, at first use", "2026-01-02"),
    ]
    assert shown[0] == f"{np.ceil(1e3 / (1 + np.exp(-part.epsilon_for_life))) / 10:g} %"
    for number in shown:
        assert number in text, number
        assert markdown_text(number) in markdown, number
    for finding in statement.verification.findings:
        assert finding.detail in text
        assert markdown_text(finding.detail) in markdown


def test_hostile_text_stays_text(statement: AuditStatement, drawn: dict[str, Figure]) -> None:
    both = f"{HOSTILE} {IN_MARKDOWN}"
    part = statement.platforms["north"]
    found = replace(
        statement,
        platforms={both: replace(part, ledger=both, trust=both, problems=(both,))},
        versions={both: both},
        commands=(f"crossrec {both}\n```\n# out of the block",),
        inputs=(both,),
        conclusion=replace(statement.conclusion, line=both, reasons=(both, both)),
        summary=(replace(statement.summary[0], question=both, text=(both,)),),
        trust=replace(statement.trust, text=(both,)),
        verification=verification(both),
    )
    page = Page(render_html(found, addresses(drawn)))
    assert page.open == []
    assert not any(tag == "script" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(a["src"] == PIXEL for tag, a in page.tags if tag == "img")
    assert page.text.count(HOSTILE) >= 10
    markdown = render_markdown(found, addresses(drawn))
    fence = re.search(r"^(`{4,})console\n.*?^\1$", markdown, flags=re.MULTILINE | re.DOTALL)
    assert fence is not None
    assert "# out of the block" in fence[0]
    outside = markdown.replace(fence[0], "")
    assert "<script" not in outside
    assert "<img" not in outside
    assert "://" not in outside
    assert not re.search(r"(?<!\\)\]\(http", outside)
    assert "# h" not in [line.strip() for line in outside.splitlines()]


def test_a_table_cell_cannot_make_columns_or_rows(
    statement: AuditStatement, drawn: dict[str, Figure]
) -> None:
    part = statement.platforms["north"]
    found = replace(statement, platforms={"a | b\nc": part})
    for line in render_markdown(found, addresses(drawn)).splitlines():
        if line.startswith("| a "):
            assert line.startswith("| a \\| b c |")


def test_no_figure_is_blank_and_each_has_a_caption_and_a_text_alternative(
    statement: AuditStatement, drawn: dict[str, Figure]
) -> None:
    assert set(drawn) == set(CAPTIONS)
    for name, figure in drawn.items():
        file = io.BytesIO()
        figure.savefig(file, format="png")
        pixels = imread(io.BytesIO(file.getvalue()))[..., :3]
        # Axes and words are grey: what has a colour was drawn from numbers.
        assert (np.ptp(pixels, axis=-1) > 0.3).mean() > 0.001, name
    page = Page(render_html(statement, addresses(drawn)))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(drawn)
    assert all(len(attributes.get("alt") or "") > 60 for attributes in pictures)


def test_without_runs_and_attacks_their_figures_are_left_out(tmp_path: Path) -> None:
    found = state([write_platform(tmp_path)], verification())
    names = set(figures(found))
    assert names == {"spending", "curve", "odds", "accounts"}
    assert "figures/roc.png" not in render_markdown(found, dict.fromkeys(names, PIXEL))


def test_without_any_guarantee_no_figure_pretends_one(tmp_path: Path) -> None:
    requests = [sum_request("north", noise=0.0)]
    ledger = write_platform(tmp_path, requests=requests, epsilon=float("inf"), seed=1)
    without = replace(verification(), compositions=())
    found = state([ledger], without)
    assert figures(found) == {}
    text = Page(render_html(found, {})).text
    assert "no guarantee" in text
    assert "Red: " in text


def test_a_report_on_nothing_is_a_red_page() -> None:
    found = state(
        Evidence(ledgers=(), servers=(), results={}), replace(verification(), findings=())
    )
    text = Page(render_html(found, {})).text
    assert "Red: there is no ledger" in text
    assert "Red: there is no ledger" in render_markdown(found, {})


def test_everything_is_written_and_the_page_holds_its_figures(
    statement: AuditStatement, tmp_path: Path
) -> None:
    write_report(tmp_path / "audit", statement)
    assert read_document(tmp_path / "audit/report.json", AuditStatement, SCHEMA_VERSION) == (
        statement
    )
    html = (tmp_path / "audit/report.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/png;base64,') == len(CAPTIONS)
    assert len(html) < 1_500_000
    markdown = (tmp_path / "audit/report.md").read_text(encoding="utf-8")
    for name in CAPTIONS:
        assert f"(figures/{name}.png)" in markdown
        assert (tmp_path / f"audit/figures/{name}.png").stat().st_size > 5_000


def test_a_folder_that_cannot_be_written_is_named(
    statement: AuditStatement, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file"):
        write_report(tmp_path / "file", statement)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 8.0, 50.0])
def test_no_posterior_is_beyond_what_bayes_allows(epsilon: float) -> None:
    for prior in (0.001, 0.1, 0.5, 0.9):
        odds = posterior(prior, epsilon) / max(1e-300, 1 - posterior(prior, epsilon))
        if epsilon < 30:
            assert odds == pytest.approx(np.exp(epsilon) * prior / (1 - prior))
        assert prior - 1e-12 <= posterior(prior, epsilon) <= 1.0
    assert (posterior(0.0, epsilon), posterior(1.0, epsilon)) == (0.0, 1.0)


def test_a_bound_does_not_shrink_in_print() -> None:
    assert percent_text(0.50001) == "50.1 %"
    assert percent_text(0.999665) == "99.97 %"
    assert percent_text(1.0) == "more than 99.99 %"
    assert odds_text(8.0) == "2,981-fold"
    assert odds_text(1.0) == "2.8-fold"
    assert odds_text(20.0) == "more than a million-fold"
    assert [strength(e) for e in (1.0, 3.0, 10.0, 10.1)] == [
        *("strong", "moderate", "weak", "very weak"),
    ]


def test_no_attack_on_a_gaussian_is_beyond_the_bound_of_its_curve(
    statement: AuditStatement,
) -> None:
    """The best attack on one Gaussian of mean m has TPR Phi(Phi^-1(FPR) + m)."""
    from scipy.stats import norm

    curve = statement.platforms["north"].curve
    mean = np.sqrt(1 / 3.0**2 + 3 / 4.0**2)
    assert advantage(curve) >= 2 * norm.cdf(mean / 2) - 1
    assert advantage(curve) <= 2 * norm.cdf(mean / 2) - 1 + 0.03
    for rate in (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9):
        best = norm.cdf(norm.ppf(rate) + mean)
        assert best <= true_positive_bound(rate, curve) <= min(1.0, 1.5 * best + 0.01)
    assert advantage([]) == true_positive_bound(0.1, []) == 1.0


def test_numbers_and_comparisons_stand_in_markdown_as_they_are() -> None:
    assert markdown_text("epsilon >= 3") == "epsilon >= 3"
    assert markdown_text("+0.0000") == "+0.0000"
    assert markdown_text("> quoted") == "\\> quoted"
    assert markdown_text("- listed") == "\\- listed"
    assert markdown_text("---") == "\\---"
    assert markdown_text("http://x") == "http:&#47;/x"


def test_a_column_on_broken_secure_aggregation_needs_a_platform_that_uses_it(
    statement: AuditStatement, drawn: dict[str, Figure]
) -> None:
    def headers(found: AuditStatement) -> str:
        text = render_markdown(found, addresses(drawn))
        return "".join(line for line in text.splitlines() if line.startswith("| platform "))

    part = statement.platforms["north"]
    masked = replace(statement, platforms={"north": replace(part, trust="secagg")})
    assert "if secure aggregation broke" in headers(masked)
    assert "if secure aggregation broke" not in headers(statement)


def test_equal_lines_are_drawn_once_and_named_after_all_who_share_them(
    drawn: dict[str, Figure],
) -> None:
    for name in ("spending", "curve"):
        labels = [text.get_text() for text in drawn[name].legends[0].get_texts()]
        assert labels == ["north, south"]

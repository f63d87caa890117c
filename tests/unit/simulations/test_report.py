from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from common.errors import StateError
from simulations.report import render_report, write_report
from simulations.result import SumRecord
from tests.unit.simulations.run_results import model, platform, run_result

if TYPE_CHECKING:
    from pathlib import Path

    from simulations.result import RunResult

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Document(HTMLParser):
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
def report() -> Document:
    return Document(render_report(run_result()))


def test_the_page_is_well_formed_and_loads_nothing_from_anywhere() -> None:
    html = render_report(run_result())
    document = Document(html)
    assert document.open == []
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import", re.sub(r"base64,[\w+/=]+", "", html))
    for tag, attributes in document.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:image/png;base64,") or (
                name not in attributes
            )


def test_hostile_text_stays_text() -> None:
    result = run_result(
        platforms={HOSTILE: replace(platform(), models={HOSTILE: model(0.3)}, trust=HOSTILE)},
        configuration={HOSTILE: HOSTILE},
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    result = replace(
        result,
        status="partial",
        resume_command=HOSTILE,
        data=replace(result.data, source=HOSTILE, notes=(HOSTILE,)),
        privacy=replace(result.privacy, mechanism=HOSTILE, released=(HOSTILE,), trust=HOSTILE),
        rounds=(replace(result.rounds[0], platforms={HOSTILE: HOSTILE}),),
    )
    document = Document(render_report(result))
    assert document.open == []
    assert not any(tag == "script" for tag, _ in document.tags)
    assert all(
        (attributes["src"] or "").startswith("data:image/png")
        for tag, attributes in document.tags
        if tag == "img"
    )
    assert not any(name.startswith("on") for _, attributes in document.tags for name in attributes)
    assert document.text.count(HOSTILE) >= 8


def test_every_platform_model_and_number_is_shown() -> None:
    models = {**platform().models, "ease": model(0.3456), "pooled": model(0.4567, None)}
    crowd = {f"shop {i}": replace(platform(), num_users=1000 + i, models=models) for i in range(30)}
    text = Document(render_report(run_result(platforms=crowd))).text
    for name in crowd:
        assert text.count(name) >= 3
    for shown in ("1,029", "popularity", "local", "federated", "ease", "pooled"):
        assert shown in text
    assert "0.3456 ± 0.0040" in text
    assert "0.4567" in text


def test_the_privacy_statement_is_complete(report: Document) -> None:
    for fact in (
        "add or remove one user with all her interactions",
        "Poisson-subsampled Gaussian",
        "PRV (Opacus)",
        "Clipping norm",
        "Noise multiplier",
        "0.8",
        "Sampling rate",
        "sees only the sum",
        "noised sum of clipped gradients",
        "This is a simulation.",
        "Whoever knows the seed can take the noise off",
        "This report is not private either",
        "e^epsilon (2,697)",
        "south: declined: budget exhausted in 1 of 2 rounds",
    ):
        assert fact in report.text


def test_data_reproduction_and_verdicts_are_stated(report: Document) -> None:
    for fact in (
        "no real person is in it",
        "Derived from the interactions",
        "3 duplicate rows were kept once.",
        "crossrec simulate --epsilon 8 --seed 7",
        "2.13.0",
        "Joining, 2 platforms: 2 better than going alone.",
        "one run is one draw",
    ):
        assert fact in report.text
    assert "Partial result" not in report.text
    assert "No privacy guarantee" not in report.text


def test_every_picture_has_a_text_alternative(report: Document) -> None:
    pictures = [attributes for tag, attributes in report.tags if tag == "img"]
    assert len(pictures) == 4
    assert all(len(attributes.get("alt") or "") > 30 for attributes in pictures)


def test_a_partial_result_says_so_on_top_with_the_way_on() -> None:
    text = Document(
        render_report(
            run_result(status="partial", rounds_completed=1, resume_command="crossrec go-on")
        )
    ).text
    assert "Partial result: 1 of 2 rounds" in text
    assert "crossrec go-on" in text
    assert text.index("Partial result") < text.index("Joining, ")


def sums_alone() -> RunResult:
    """A run of two sums: one platform sat out the second."""
    names = ("north", "south")
    return run_result(
        rounds_planned=0,
        rounds_completed=0,
        rounds=(),
        sums_planned=2,
        sums=(
            SumRecord(
                quantity="item-counts", seconds=1.0, platforms=dict.fromkeys(names, "released")
            ),
            SumRecord(
                quantity="item-pairs",
                seconds=1.0,
                platforms={"north": "released", "south": "declined: budget exhausted"},
            ),
        ),
    )


def test_a_run_of_sums_speaks_of_no_rounds() -> None:
    document = Document(render_report(sums_alone()))
    assert "2 of 2 sums" in document.text
    assert "south: declined: budget exhausted for the item pairs." in document.text
    assert "north: " in document.text
    assert not re.search(r"\brounds?\b", document.text.partition("Run configuration")[0])
    assert sum(tag == "img" for tag, _ in document.tags) == 3


def test_a_run_stopped_before_anything_was_measured_renders() -> None:
    result = run_result(
        status="partial", rounds_completed=0, rounds=(), platforms={}, peak_memory_mb=None
    )
    assert "No platform was measured." in Document(render_report(result)).text


def test_without_a_guarantee_none_is_claimed() -> None:
    result = run_result(
        platforms={"north": replace(platform(), epsilon=None, epsilon_history=(None,))}
    )
    privacy = replace(result.privacy, planned_epsilon=None, clipping_norm=None, trust="none")
    text = Document(render_report(replace(result, privacy=privacy))).text
    assert "No privacy guarantee" in text
    assert "e^epsilon" not in text


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, run_result())
    assert path.read_text(encoding="utf-8").endswith("</html>")
    (tmp_path / "in-the-way").mkdir()
    with pytest.raises(StateError):
        write_report(tmp_path / "in-the-way", run_result())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in-the-way", "report.html"]

"""The audit report of a whole simulated run, in a real browser and without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.image import imread

from simulations.audit.report.making import make_report
from simulations.audit.report.statement import POINTS
from simulations.documents import write_document
from simulations.options import SimulationOptions
from simulations.simulate import SimulationRun
from tests.shops import write_shops
from tests.unit.simulations.audit.audited import attack_result

if TYPE_CHECKING:
    from pathlib import Path

    from simulations.audit.report.statement import AuditStatement

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

SECTIONS = ("verdict", "summary", "ledgers", "findings", "repeat", "glossary", *POINTS)
FIGURES = ("odds", "spending", "curve", "accounts", "utility", "roc", "bounds")

_PROBE = """<script>
const place = (e) => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const report = {
  height: document.documentElement.scrollHeight,
  width: document.documentElement.scrollWidth,
  images: [...document.images].map(
    (e) => ({natural: [e.naturalWidth, e.naturalHeight], place: place(e)})),
  sections: Object.fromEntries([...document.querySelectorAll("section")].map(
    (e) => [e.id, {place: place(e), letters: e.innerText.length}])),
};
const element = document.createElement("pre");
element.id = "probe";
element.textContent = JSON.stringify(report);
document.body.replaceChildren(element);
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditStatement]:
    """The folder of a report on a run of two small shops, and what it says."""
    folder = tmp_path_factory.mktemp("audited")
    data = write_shops(folder / "shops")
    SimulationRun.open(SimulationOptions(data=data, epochs=1, seed=3), folder / "run").execute()
    write_document(folder / "audit/attack.json", attack_result())
    return folder / "audit", make_report([], [folder / "run"], folder / "audit")


def chromium(profile: Path, page: Path, *options: str, size: tuple[int, int]) -> str:
    """Open ``page`` without a network; what the browser prints."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--force-color-profile=srgb",
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def probed(tmp_path: Path, html: str, width: int) -> dict[str, Any]:
    """What a browser of ``width`` makes of a page: a copy of it tells, with a script for tests."""
    page = tmp_path / "probe.html"
    allowed = re.sub(r"<meta http-equiv=[^>]*>", "", html)
    assert allowed != html
    page.write_text(allowed.replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
    dom = chromium(tmp_path / "profile", page, "--dump-dom", size=(width, 900))
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert found is not None
    told: dict[str, Any] = json.loads(found[1])
    return told


def check_rendered(told: dict[str, Any], width: int) -> None:
    """Every section has words and room, every figure was decoded, and nothing is cut off."""
    assert told["sections"].keys() >= set(SECTIONS)
    for name in SECTIONS:
        assert told["sections"][name]["letters"] > 40, name
        assert told["sections"][name]["place"][3] > 20, name
    assert len(told["images"]) == len(FIGURES)
    for image in told["images"]:
        assert min(image["natural"]) > 200
        assert image["place"][2] > min(300, width - 60)
    assert told["width"] <= width


# Chromium lays nothing out in less than 500, which is in the range of the telephone styles.
@pytest.mark.parametrize("width", [1100, 500], ids=["desk", "telephone"])
def test_the_report_shows_every_section_and_figure(
    report: tuple[Path, AuditStatement], tmp_path: Path, width: int
) -> None:
    folder, statement = report
    html = (folder / "report.html").read_text(encoding="utf-8")
    told = probed(tmp_path, html, width)
    check_rendered(told, width)
    screenshot = tmp_path / "report.png"
    chromium(
        tmp_path / "profile",
        folder / "report.html",
        f"--screenshot={screenshot}",
        size=(width, told["height"]),
    )
    pixels = imread(screenshot)[..., :3]
    assert pixels.shape[:2] == (told["height"], width)
    for image in told["images"]:
        assert share_of_colour(pixels, image["place"]) > 0.001
    # The light is where the verdict is, in its colour: here more red and green than blue.
    assert statement.conclusion.light == "amber"
    x, y, _, height = (round(number) for number in told["sections"]["verdict"]["place"])
    red, green, blue = pixels[y + height // 2, x + 3]
    assert red > green > blue


def share_of_colour(pixels: np.ndarray, place: list[float]) -> float:
    """Part of the box that is neither grey nor white: axes and words are."""
    x, y, width, height = (round(number) for number in place)
    box = pixels[y : y + height, x : x + width]
    return float((np.ptp(box, axis=-1) > 0.3).mean())


@pytest.mark.parametrize(
    ("what", "pattern", "put"),
    [
        ("a figure that is no image", r"base64,iVBOR", "base64,AAAA"),
        ("a lost figure", r"<figure>.*?</figure>", ""),
        ("a lost section", r'<section id="sampling">.*?</section>', ""),
        ("an empty section", r'(<section id="trust">).*?(</section>)', r"\1\2"),
    ],
    ids=["no-image", "no-figure", "no-section", "empty-section"],
)
def test_a_broken_page_is_found_out(
    report: tuple[Path, AuditStatement], tmp_path: Path, what: str, pattern: str, put: str
) -> None:
    html = (report[0] / "report.html").read_text(encoding="utf-8")
    broken = re.sub(pattern, put, html, count=1, flags=re.DOTALL)
    assert broken != html, what
    with pytest.raises(AssertionError):
        check_rendered(probed(tmp_path, broken, 1100), 1100)


def test_a_blank_figure_is_found_out() -> None:
    grey = np.repeat(np.random.default_rng(0).random((50, 50, 1)), 3, axis=2)
    assert share_of_colour(grey, [0, 0, 50, 50]) == 0.0


def test_printed_it_is_some_pages_and_the_first_has_the_verdict(
    report: tuple[Path, AuditStatement], tmp_path: Path
) -> None:
    paper = tmp_path / "report.pdf"
    chromium(
        tmp_path / "profile",
        report[0] / "report.html",
        *(f"--print-to-pdf={paper}", "--no-pdf-header-footer"),
        size=(1100, 900),
    )
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 40
    assert content.count(b"/Subtype /Image") + content.count(b"/Subtype/Image") >= len(FIGURES)

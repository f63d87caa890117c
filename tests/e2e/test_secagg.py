"""Secure sums from the command line to the report: what masks hide changes no bit of the result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from common.cli import main
from common.privacy.ledger import LEDGER_FILE, Ledger
from simulations import simulate
from tests.shops import options, read_document, run_all, tune_little, write_shops

if TYPE_CHECKING:
    from pathlib import Path

FOUR_SHOPS = {"east": 12, "north": 18, "south": 14, "west": 10}


@pytest.fixture
def shops(tmp_path: Path) -> Path:
    return write_shops(tmp_path / "shops", FOUR_SHOPS)


def but_for_trust(value: Any) -> Any:  # noqa: ANN401 - any part of a document
    """A document without what says which trust mode it was, the command line included."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in ("trust", "command")}
        return {key: but_for_trust(part) for key, part in kept.items()}
    if isinstance(value, list):
        return [but_for_trust(part) for part in value]
    return value


def arrays_of(folder: Path) -> dict[str, bytes]:
    """All that a run keeps on the coordinator's disk, but for its journal and its open sum."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob("federation-state/*/*.safetensors")
        if path.name != "secure-sum.safetensors"
    }


@pytest.mark.parametrize("max_dropped", [0, 1])
def test_masks_change_no_bit_of_a_run(shops: Path, tmp_path: Path, max_dropped: int) -> None:
    asked: dict[str, Any] = {"max_dropped": max_dropped, "rounds": 2, "epochs": 1}
    found = {
        trust: run_all(options(shops, trust=trust, **asked), tmp_path / trust)
        for trust in ("secagg", "secagg-simulated")
    }
    for trust, document in found.items():
        assert {platform["trust"] for platform in document["platforms"].values()} == {trust}
        for record in (*document["sums"], *document["rounds"]):
            assert record["platforms"] == dict.fromkeys(FOUR_SHOPS, "released")
    real, simulated = (but_for_trust(document) for document in found.values())
    assert real == simulated
    kept = [arrays_of(tmp_path / trust) for trust in found]
    assert len(kept[0]) == 3, "two sums and a checkpoint"
    assert kept[0] == kept[1]
    for name in FOUR_SHOPS:
        state = tmp_path / "secagg" / "platforms" / name / "state"
        ledger = Ledger(state / LEDGER_FILE, read_only=True)
        assert len(ledger.account().spends) == 4
        ledger.close()
        assert list((state / "secagg").glob("*.json"))


def crossrec(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", *map(str, words)])
    return int(stopped.value.code or 0)


def test_the_command_line_sums_securely(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("save_figures", "write_report"):
        monkeypatch.setattr(simulate, name, lambda *_: None)
    tune_little(monkeypatch)
    words = ["--trust", "secagg", "--max-dropped", 1, "--plan", "both", "--rounds", 1]
    words += ["--epochs", 1, "--dim", 4, "--out", tmp_path / "run"]
    assert crossrec("--data", shops, *words) == 0
    document = read_document(tmp_path / "run")
    assert document["status"] == "complete"
    for platform in document["platforms"].values():
        assert platform["trust"] == "secagg"
        assert platform["epsilon_if_secagg_broken"] > platform["epsilon"]


@pytest.mark.parametrize("trust", ["secagg", "secagg-simulated"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--local-steps", 2), r"local_steps: found 2; with trust .* one noisy step"),
        (("--max-dropped", 2), r"of 4 platforms 2 may drop out"),
        (("--max-colluding", 4), r"of 4 platforms 0 may drop out and 4 collude"),
    ],
)
def test_what_no_secure_sum_can_do_is_refused_before_anything_runs(
    shops: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trust: str,
    words: tuple[object, ...],
    said: str,
) -> None:
    common = ["--data", shops, "--trust", trust, "--plan", "both", "--rounds", 2]
    assert crossrec(*common, *words, "--out", tmp_path / "run") != 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert re.search(said, printed), printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("ledger.sqlite"))

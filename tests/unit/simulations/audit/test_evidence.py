"""Everything is found and read, whatever state it is in, and nothing is written beside it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from common.errors import ConfigError
from common.privacy.account import Budget
from common.privacy.ledger import Ledger
from simulations.audit.evidence import gather
from tests.harm import TAMPERING, head_of
from tests.unit.simulations.audit.records import (
    copy_of,
    entries_of,
    finished_run,
    journal_of,
    ledger_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ["east", "north", "south"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run("local", tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return copy_of(finished, tmp_path)


# --- What is found ------------------------------------------------------------------------------


def test_a_simulated_runs_folder_gives_all_that_is_in_it(run: Path) -> None:
    found = gather([], [run])
    assert [one.platform for one in found.ledgers] == NAMES
    for ledger in found.ledgers:
        assert ledger.problems == ()
        assert ledger.config is not None
        assert ledger.head == (len(ledger.entries), ledger.entries[-1].digest)
        assert list(ledger.entries) == entries_of(ledger.path)
        assert len(ledger.releases) == 4
    (server,) = found.servers
    assert server.folder == journal_of(run).parent
    assert server.run_id == server.folder.name
    assert server.config is not None
    assert server.events[-1]["event"] == "run-finished"
    assert list(found.results) == [(run / "result.json").resolve()]


def test_a_run_that_was_copied_is_read_where_it_is_now(finished: Path, run: Path) -> None:
    """Its files still name the folders where it was made."""
    assert str(finished) in (run / "platforms/north/platform.toml").read_text()
    found = gather([], [run])
    assert all(run in one.path.parents for one in found.ledgers)
    assert all(run in one.folder.parents for one in found.servers)


def test_files_that_were_copied_without_what_they_name_are_read_where_they_are(run: Path) -> None:
    for file in (run / "platforms" / "north" / "platform.toml", run / "federation.toml"):
        lines = file.read_text().splitlines()
        gone = ['folder = "gone"' if line.startswith("folder") else line for line in lines]
        file.write_text("\n".join(gone))
    found = gather([run / "platforms" / "north" / "platform.toml"], [run / "federation.toml"])
    assert [one.path for one in found.ledgers] == [ledger_of(run)]
    assert [one.folder for one in found.servers] == [journal_of(run).parent]


@pytest.mark.parametrize(
    "place",
    [
        lambda run: run / "platforms" / "north" / "platform.toml",
        lambda run: run / "platforms" / "north",
        lambda run: ledger_of(run).parent,
        ledger_of,
    ],
    ids=["platform.toml", "its folder", "state", "ledger.sqlite"],
)
def test_a_ledger_is_named_in_four_ways(finished: Path, place: Callable[[Path], Path]) -> None:
    (ledger,) = gather([place(finished)], []).ledgers
    assert ledger.platform == "north"
    assert ledger.config is not None
    assert len(ledger.releases) == 4


def test_a_ledger_without_its_configuration_has_the_name_in_its_requests(
    run: Path, tmp_path: Path
) -> None:
    shutil.copyfile(ledger_of(run), tmp_path / "copy.sqlite")
    (ledger,) = gather([tmp_path / "copy.sqlite"], []).ledgers
    assert (ledger.platform, ledger.config, ledger.head) == ("north", None, None)


def test_a_ledger_without_requests_has_the_name_of_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "shop" / "state" / "ledger.sqlite"
    path.parent.mkdir(parents=True)
    with closing(Ledger(path)) as ledger:
        ledger.grant(Budget(epsilon=1.0, delta=1e-5), "me")
    assert gather([path], []).ledgers[0].platform == "shop"


def test_what_is_named_twice_counts_once(run: Path) -> None:
    found = gather([ledger_of(run), ledger_of(run).parent], [run, run / "federation-state" / ".."])
    assert [one.platform for one in found.ledgers] == NAMES
    assert len(found.servers) == 1


def test_a_copy_of_a_ledger_stands_beside_it(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(ledger_of(run).parent, copy)
    found = gather([copy], [run])
    assert [one.platform for one in found.ledgers] == ["east", "north", "north", "south"]


def test_a_federation_gives_every_run_in_its_state_folder(run: Path) -> None:
    journal = journal_of(run)
    other = journal.parent.parent / "an-older-run"
    shutil.copytree(journal.parent, other)
    configs = {one.run_id: one.config for one in gather([], [run]).servers}
    assert set(configs) == {journal.parent.name, "an-older-run"}
    assert configs["an-older-run"] is None
    assert configs[journal.parent.name] is not None


def test_a_folder_with_a_journal_is_a_run(run: Path) -> None:
    found = gather([], [journal_of(run).parent])
    assert found.ledgers == ()
    assert found.servers[0].config is None


def test_a_federations_folder_is_a_run(run: Path) -> None:
    shutil.rmtree(run / "platforms")
    assert gather([], [run]).servers[0].config is not None


# --- What is wrong with it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ledgers", "runs", "message"),
    [
        ([], [], "there is nothing to audit"),
        (["nowhere"], [], r"nowhere: there is no ledger\. Name a platform\.toml"),
        ([], ["nowhere"], "nowhere: is no run. Name the folder of a simulated run"),
        (["platform.toml"], [], "platform.toml: cannot be read"),
        ([], ["federation.toml"], "federation.toml: cannot be read"),
    ],
)
def test_what_is_missing_is_named_with_the_next_step(
    tmp_path: Path, ledgers: list[str], runs: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        gather([tmp_path / name for name in ledgers], [tmp_path / name for name in runs])


def test_two_simulations_of_the_same_platforms_are_not_mixed(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path / "copies")
    assert len(gather([], [run, copy]).ledgers) == 2 * len(NAMES)
    journal = journal_of(copy).parent
    journal.rename(journal.with_name("another-run"))
    with pytest.raises(ConfigError, match=r"two simulations .* audit each by itself"):
        gather([], [run, copy])


def test_a_federation_that_never_ran_is_named(run: Path) -> None:
    config = run / "federation.toml"
    text = config.read_text()
    folder = next(line for line in text.splitlines() if line.startswith("folder"))
    config.write_text(text.replace(folder, 'folder = "elsewhere"'))
    shutil.rmtree(run / "federation-state")
    with pytest.raises(ConfigError, match="holds no run's journal"):
        gather([], [config])


@pytest.mark.parametrize("name", TAMPERING)
def test_a_harmed_ledger_is_read_as_far_as_it_goes_and_others_in_full(run: Path, name: str) -> None:
    TAMPERING[name][0](ledger_of(run))
    found = {one.platform: one for one in gather([], [run]).ledgers}
    assert found["south"].problems == ()
    assert len(found["south"].entries) == 9
    is_legible = not name.startswith(("file", "ledger", "table", "values", "head-g", "head-e"))
    assert is_legible or found["north"].problems


def test_a_text_file_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("entries: none\n" * 100)
    (ledger,) = gather([path], []).ledgers
    assert "cannot be read as a ledger" in ledger.problems[0]


def test_a_file_that_never_was_a_ledger_is_a_wrong_question(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Shops\n")
    with pytest.raises(ConfigError, match=r"README\.md: is no ledger\. Name a platform\.toml"):
        gather([tmp_path / "README.md"], [])


def test_a_table_of_other_columns_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE entry (sequence INTEGER, text TEXT)")
        db.commit()
    (ledger,) = gather([path], []).ledgers
    assert "no such column" in ledger.problems[0]


def test_a_missing_ledger_with_a_head_is_a_problem(run: Path) -> None:
    ledger_of(run).unlink()
    (found,) = gather([ledger_of(run).parent], []).ledgers
    assert "is missing" in found.problems[0]
    head_of(ledger_of(run)).unlink()
    with pytest.raises(ConfigError, match="there is no ledger"):
        gather([ledger_of(run).parent], [])


def test_damaged_lines_of_a_journal_are_problems_and_half_a_line_is_a_crash(run: Path) -> None:
    journal = journal_of(run)
    lines = journal.read_bytes().splitlines(keepends=True)
    damaged = [lines[0], b"\xff\xfe\n", b"[1]\n", b'{"time": 1}\n', *lines[1:], b'{"event": "hal']
    journal.write_bytes(b"".join(damaged))
    (server,) = gather([], [run]).servers
    assert len(server.events) == len(lines)
    assert [problem.split()[-3] for problem in server.problems] == ["2", "3", "4"]


def test_a_damaged_result_and_a_damaged_configuration_are_problems(run: Path) -> None:
    (run / "result.json").write_text("{}")
    (run / "platforms/north/platform.toml").write_text("[platform]\nname = 3\n")
    (run / "federation.toml").write_text("nonsense")
    found = gather([], [run])
    assert found.results == {}
    assert "schema version" in next(iter(found.problems.values()))
    north = next(one for one in found.ledgers if one.platform == "north")
    assert north.config is None
    assert "found 3" in north.problems[0]
    assert found.servers[0].config is None


# --- A platform at work ---------------------------------------------------------------------------


def test_what_a_platform_at_work_has_written_is_read_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.grant(Budget(epsilon=1.0, delta=1e-5), "me")
        ledger.note("still in the log")
        files = sorted(tmp_path.iterdir())
        assert path.with_name("ledger.sqlite-wal") in files
        (found,) = gather([path], []).ledgers
        assert (len(found.entries), found.problems) == (2, ())
        assert sorted(tmp_path.iterdir()) == files


def test_a_copy_taken_from_a_platform_at_work_is_read_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    copy = tmp_path / "copy"
    copy.mkdir()
    with closing(Ledger(path)) as ledger:
        ledger.grant(Budget(epsilon=1.0, delta=1e-5), "me")
        ledger.note("still in the log")
        for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite.head"):
            shutil.copyfile(tmp_path / name, copy / name)
    before = {file: file.read_bytes() for file in copy.iterdir()}
    (found,) = gather([copy], []).ledgers
    assert (len(found.entries), found.problems) == (2, ())
    assert {file: file.read_bytes() for file in copy.iterdir()} == before

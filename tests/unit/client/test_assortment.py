"""What a platform reports of its items, and what it makes of the rows that it is told."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pytest

from client.assortment import AgreementFiles
from client.config import CatalogueSection
from client.data import load_catalogue, load_platform_data
from client.platform import Platform
from common.data.agreement import unpack_keys
from common.data.catalogue import digest_of
from common.errors import DataError, StateError
from common.messages import Agreement, AssortmentRequest
from tests.unit.client.homes import (
    NAME,
    NUM_ITEMS,
    durable_entries,
    move_in,
    purchases,
    shared_arrays,
    train_request,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.config import PlatformConfig
    from common.messages import Reply
    from common.models.partition import Arrays

ITEMS = [f"i{item:02d}" for item in range(12)]
"""What ``north`` sells; its users bought nothing else."""
ROWS = np.array([13, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0])
"""Of a catalogue of 14 items that grew at its end: the first item came last."""
SECRET = "5a" * 32
ASK = AssortmentRequest(run_id="spring", platform=NAME, max_items=100)


@pytest.fixture
def config(tmp_path: Path) -> PlatformConfig:
    """A platform that holds its own items only."""
    write_items(tmp_path, ITEMS)
    section = CatalogueSection(assortment=tmp_path / "own.csv")
    return replace(move_in(tmp_path), catalogue=section)


@pytest.fixture
def data_are_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens interactions fails the test."""

    def locked(*_: object, **__: object) -> NoReturn:
        pytest.fail("user data was touched")

    monkeypatch.setattr("client.platform.load_platform_data", locked)
    monkeypatch.setattr("client.data.read_interactions", locked)


def write_items(folder: Path, items: Sequence[str]) -> None:
    lines = [f"{item},Brand {place},{place}.50" for place, item in enumerate(items)]
    (folder / "own.csv").write_text("\n".join(["sku,brand,price", *lines]).replace("sku", "itemId"))


def with_secret(config: PlatformConfig, text: str = SECRET) -> PlatformConfig:
    assert config.catalogue.assortment is not None
    path = config.catalogue.assortment.with_name("secret.hex")
    path.write_text(text)
    return replace(config, catalogue=replace(config.catalogue, key_file=path))


def keys_of(config: PlatformConfig) -> tuple[str, ...]:
    reply, arrays = Platform(config).report(ASK)
    assert reply.outcome == "listed", reply.reason
    assert arrays is not None
    return unpack_keys(arrays)


def agreement(keys: Sequence[str], **changes: Any) -> Agreement:  # noqa: ANN401 - any field
    facts: dict[str, Any] = {
        "run_id": "spring",
        "platform": NAME,
        "assortment_digest": digest_of(keys),
        "origin": "0" * 64,
        "version": 1,
        "catalogue_digest": "c" * 64,
        "num_items": NUM_ITEMS,
    }
    return Agreement(**{**facts, **changes})


def agree(
    config: PlatformConfig,
    keys: Sequence[str],
    rows: np.ndarray = ROWS,
    **changes: Any,  # noqa: ANN401
) -> Reply:
    return Platform(config).agree(agreement(keys, **changes), {"rows": rows})


def settled(config: PlatformConfig) -> PlatformConfig:
    assert agree(config, keys_of(config)).outcome == "agreed"
    return config


# --- The report ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("data_are_locked")
def test_a_report_holds_the_items_and_nothing_else_and_is_free(config: PlatformConfig) -> None:
    purchases(config).unlink()
    assert keys_of(config) == tuple(ITEMS)
    reply, arrays = Platform(config).report(ASK)
    assert arrays is not None
    assert set(arrays) == {"text", "lengths"}
    assert (reply.run_id, reply.platform, reply.round_number) == ("spring", NAME, 0)
    assert agree(config, ITEMS).outcome == "agreed"
    assert durable_entries(config) == []


def test_what_was_bought_changes_no_report(config: PlatformConfig) -> None:
    with purchases(config).open("a", encoding="utf-8") as file:
        file.write("u000,unheard-of,999\n")
    assert keys_of(config) == tuple(ITEMS)


@pytest.mark.usefixtures("data_are_locked")
def test_under_a_secret_hashes_are_reported_in_their_own_order(config: PlatformConfig) -> None:
    config = with_secret(config, f"  {SECRET}\n")
    expected = [
        hmac.new(bytes.fromhex(SECRET), item.encode(), hashlib.sha256).hexdigest() for item in ITEMS
    ]
    assert expected != sorted(expected)
    assert list(keys_of(config)) == sorted(expected)
    assert set(keys_of(with_secret(config, "5b" * 32))).isdisjoint(expected)


@pytest.mark.parametrize("text", ["", "5a" * 31, "5a" * 32 + "5", "xy" * 32, "é" * 64])
def test_a_secret_that_is_none_is_not_used_and_not_told(
    config: PlatformConfig, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    reply, arrays = Platform(with_secret(config, text)).report(ASK)
    assert (reply.outcome, arrays) == ("declined", None)
    assert reply.reason == "failed: the cause is in the platform's own log."
    assert "catalogue.key_file" in caplog.text
    assert not text or text not in caplog.text


def test_a_missing_secret_is_no_reason_to_report_ids(config: PlatformConfig) -> None:
    config = with_secret(config)
    assert config.catalogue.key_file is not None
    config.catalogue.key_file.unlink()
    reply, arrays = Platform(config).report(ASK)
    assert (reply.outcome, arrays) == ("declined", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"platform": "south"}, "refused: platform: the request is for 'south'"),
        ({"max_items": 11}, "refused: item keys: found 12, expected 1 to 11"),
    ],
)
def test_what_the_request_does_not_allow_is_refused(
    config: PlatformConfig, change: dict[str, Any], reason: str
) -> None:
    reply, arrays = Platform(config).report(replace(ASK, **change))
    assert arrays is None
    assert reply.reason.startswith(reason)


def test_a_platform_with_a_catalogue_file_reports_nothing(tmp_path: Path) -> None:
    reply, arrays = Platform(move_in(tmp_path)).report(ASK)
    assert arrays is None
    assert reply.reason.startswith("refused: catalogue: this platform holds a catalogue file")


def test_an_id_too_long_for_the_others_is_refused_here(
    config: PlatformConfig, tmp_path: Path
) -> None:
    write_items(tmp_path, [*ITEMS, "x" * 300])
    assert "bytes each" in Platform(config).report(ASK)[0].reason
    assert len(keys_of(with_secret(config))) == 13


# --- The agreement ------------------------------------------------------------------------------


def test_before_an_agreement_there_is_no_catalogue(config: PlatformConfig) -> None:
    assert Platform(config).profile().catalogue_digest == ""
    with pytest.raises(DataError, match="no catalogue was agreed on yet"):
        load_catalogue(config)


@pytest.mark.parametrize("is_keyed", [False, True])
def test_what_was_agreed_on_is_the_catalogue_as_if_a_file_had_said_it(
    config: PlatformConfig, *, is_keyed: bool
) -> None:
    by_file = dict(zip(ITEMS, ROWS.tolist(), strict=True))
    if is_keyed:
        config = with_secret(config)
    keys = keys_of(config)
    hashed = {
        hmac.new(bytes.fromhex(SECRET), item.encode(), hashlib.sha256).hexdigest(): item
        for item in ITEMS
    }
    rows = np.array([by_file[hashed.get(key, key)] for key in keys])
    assert agree(config, keys, rows).outcome == "agreed"
    assert Platform(config).profile().catalogue_digest == "c" * 64
    catalogue = load_catalogue(config)
    assert catalogue.num_items == NUM_ITEMS
    assert catalogue.listing(NAME).tolist() == sorted(ROWS.tolist())
    assert catalogue.listed_ids(NAME) == tuple(sorted(ITEMS, key=by_file.__getitem__))
    data = load_platform_data(config)
    assert data.num_catalogue_items == NUM_ITEMS
    lines = purchases(config).read_text().splitlines()[1:]
    bought = {(line.split(",")[0], by_file[line.split(",")[1]]) for line in lines}
    users, columns = data.users.matrix.nonzero()
    found = {
        (data.users.user_ids[user], int(data.users.listing[column]))
        for user, column in zip(users, columns, strict=True)
    }
    assert found == bought


def test_a_round_follows_the_agreement(config: PlatformConfig, tmp_path: Path) -> None:
    request = train_request(move_in(tmp_path), catalogue_digest="c" * 64)
    declined, _ = Platform(config).train(request, shared_arrays())
    assert declined.reason.startswith("refused: catalogue")
    settled(config)
    reply, release = Platform(config).train(request, shared_arrays())
    assert reply.outcome == "released"
    assert release is not None
    outside = np.setdiff1d(np.arange(NUM_ITEMS), ROWS)
    assert not release["items.weight"][outside].any()
    assert release["items.weight"][ROWS].all()


def test_items_listed_or_delisted_meanwhile_wait_for_the_next_agreement(
    config: PlatformConfig, tmp_path: Path
) -> None:
    settled(config)
    before = load_platform_data(config).users.matrix.toarray()
    write_items(tmp_path, [*ITEMS[2:], "new"])
    with purchases(config).open("a", encoding="utf-8") as file:
        file.write("u000,new,999\n")
    catalogue = load_catalogue(config)
    assert set(catalogue.listed_ids(NAME)) == set(ITEMS)
    after = load_platform_data(config).users.matrix.toarray()
    np.testing.assert_array_equal(after, before)  # the new item is left out, the old ones stay
    keys = keys_of(config)
    np.testing.assert_array_equal(load_catalogue(config).listing(NAME), catalogue.listing(NAME))
    rows = np.array([*ROWS[2:], 14])
    assert agree(config, keys, rows, version=2, num_items=15).outcome == "agreed"
    assert set(load_catalogue(config).listed_ids(NAME)) == {*ITEMS[2:], "new"}
    users = load_platform_data(config).users
    assert users.matrix[:, users.num_items - 1].nnz == 1


def test_the_same_again_changes_nothing_even_if_something_else_was_reported_since(
    config: PlatformConfig, tmp_path: Path
) -> None:
    settled(config)
    write_items(tmp_path, ITEMS[1:])
    keys_of(config)
    assert agree(config, ITEMS).outcome == "agreed"
    assert load_catalogue(config).listed_ids(NAME)[-1] == ITEMS[0]


def at(place: int, row: int) -> np.ndarray:
    rows = ROWS.copy()
    rows[place] = row
    return rows


BAD_ROWS: dict[str, tuple[Arrays, str]] = {
    "none": ({}, "expected int64 rows"),
    "more": ({"rows": ROWS, "prices": ROWS}, "expected int64 rows"),
    "reals": ({"rows": ROWS.astype(float)}, "expected int64 rows"),
    "other-integers": ({"rows": ROWS.astype(np.int32)}, "expected int64 rows"),
    "big-endian": ({"rows": ROWS.astype(">i8")}, "expected int64 rows"),
    "too-few": ({"rows": ROWS[1:]}, "one row for each of 12 items"),
    "too-many": ({"rows": np.arange(13)}, "one row for each of 12 items"),
    "table": ({"rows": ROWS[:, None]}, "one row for each of 12 items"),
    "twice": ({"rows": at(0, 2)}, "none twice"),
    "negative": ({"rows": at(0, -1)}, "rows of 14 items"),
    "beyond": ({"rows": at(0, 14)}, "rows of 14 items"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_are_not_one_for_each_item_are_refused_and_the_old_ones_stay(
    config: PlatformConfig, case: str
) -> None:
    settled(config)
    arrays, reason = BAD_ROWS[case]
    # Of another origin, so that nothing but the rows themselves is at fault.
    request = agreement(ITEMS, origin="1" * 64, catalogue_digest="d" * 64)
    reply = Platform(config).agree(request, arrays)
    assert reply.outcome == "declined"
    assert reply.reason.startswith("refused: catalogue: ")
    assert reason in reply.reason
    assert Platform(config).profile().catalogue_digest == "c" * 64


def test_rows_for_what_was_not_reported_are_refused(config: PlatformConfig) -> None:
    assert "did not report" in agree(config, ITEMS).reason  # nothing was
    keys_of(config)
    assert "did not report" in agree(config, ITEMS[1:], ROWS[1:]).reason
    assert "for 'south'" in agree(config, ITEMS, platform="south").reason


@pytest.mark.parametrize("version", [1, 2])
def test_a_row_never_moves_unless_the_server_says_that_it_is_another_catalogue(
    config: PlatformConfig, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    settled(config)
    moved = ROWS.copy()
    moved[[1, 2]] = moved[[2, 1]]
    reply = agree(config, ITEMS, moved, version=version)
    assert "2 items have other rows than in version 1" in reply.reason
    assert agree(config, ITEMS, version=version).outcome == "agreed"
    assert agree(config, ITEMS, moved, origin="1" * 64).outcome == "agreed"
    assert "another catalogue" in caplog.text


def test_models_of_other_columns_are_not_taken_for_those_of_an_agreement(
    config: PlatformConfig,
) -> None:
    before = load_platform_data(settled(config))
    assert agree(config, ITEMS, np.sort(ROWS), origin="1" * 64).outcome == "agreed"
    after = load_platform_data(config)
    assert after.users.user_ids == before.users.user_ids
    assert after.users_digest != before.users_digest
    assert agree(config, ITEMS, np.sort(ROWS), origin="1" * 64, version=2).outcome == "agreed"
    assert load_platform_data(config).users_digest == after.users_digest


def test_a_damaged_agreement_is_an_error_and_not_another_catalogue(config: PlatformConfig) -> None:
    settled(config)
    path = AgreementFiles(config.state.folder).agreed_file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateError, match=r"agreed\.safetensors"):
        load_catalogue(config)
    reply = agree(config, ITEMS)
    assert reply.reason == "failed: the cause is in the platform's own log."

"""Keys survive the way, hostile ones do not pass, and an extension moves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.agreement import (
    MAX_KEY_BYTES,
    check_assortment,
    extend_catalogue,
    pack_keys,
    unpack_keys,
)
from common.errors import InvalidRelease
from common.messages import Reply
from common.storage import pack_arrays, unpack_arrays
from common.wire import decode, encode

if TYPE_CHECKING:
    from common.models.partition import Arrays

REPLY = Reply(platform="n", run_id="spring", round_number=0, outcome="listed")
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
key_lists = st.lists(keys, unique=True, min_size=1, max_size=8)
reports = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=4)


@given(key_lists)
def test_keys_come_back_from_flowers_records_and_from_a_file(listed: list[str]) -> None:
    _, arrays = decode(encode(REPLY, pack_keys(listed)), Reply)
    assert unpack_keys(arrays) == tuple(listed)
    arrays, _ = unpack_arrays(pack_arrays(pack_keys(listed), {}), "memory")
    assert unpack_keys(arrays) == tuple(listed)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), reports, st.randoms())
def test_an_extension_moves_no_row_and_does_not_depend_on_who_came_first(
    known: list[str], reported: list[list[str]], random: object
) -> None:
    extended = extend_catalogue(known, reported)
    assert extended[: len(known)] == tuple(known)
    new = extended[len(known) :]
    assert list(new) == sorted(new)
    assert set(extended) == {*known, *(key for listed in reported for key in listed)}
    assert len(set(extended)) == len(extended)
    random.shuffle(reported)  # type: ignore[attr-defined]
    assert extend_catalogue(known, reported) == extended
    assert extend_catalogue(extended, reported) == extended


def test_the_first_version_is_sorted() -> None:
    assert extend_catalogue((), [["c", "a"], ["b", "c"]]) == ("a", "b", "c")


def altered(
    text: bytes | np.ndarray, lengths: list[int] | np.ndarray, **more: np.ndarray
) -> Arrays:
    if isinstance(text, bytes):
        text = np.frombuffer(text, np.uint8)
    return {"text": text, "lengths": np.asarray(lengths), **more}


HOSTILE: dict[str, tuple[Arrays, str]] = {
    "nothing": ({}, "expected uint8 text"),
    "text-only": ({"text": np.zeros(1, np.uint8)}, "expected uint8 text"),
    "one-array-more": (altered(b"ab", [1, 1], prices=np.zeros(2)), "prices"),
    "signed-text": (altered(np.ones(2, np.int8), [1, 1]), "expected uint8 text"),
    "real-lengths": (altered(b"ab", np.ones(2)), "int64 lengths"),
    "big-endian-lengths": (altered(b"ab", np.ones(2, ">i8")), "int64 lengths"),
    "table-of-lengths": (altered(b"ab", np.ones((1, 2), np.int64)), "int64 lengths"),
    "no-key": (altered(b"", np.zeros(0, np.int64)), "found 0, expected 1 to 5"),
    "too-many": (pack_keys("abcdef"), "found 6, expected 1 to 5"),
    "empty-key": (altered(b"ab", [1, 0, 1]), "bytes each"),
    "negative-length": (altered(b"ab", [3, -1]), "bytes each"),
    "wrapping-lengths": (altered(b"", [2**62, 2**62, 2**62, 2**62]), "bytes each"),
    "longer-than-the-text": (altered(b"ab", [1, 2]), "bytes each"),
    "shorter-than-the-text": (altered(b"abc", [1, 1]), "bytes each"),
    "too-long": (pack_keys(["x" * (MAX_KEY_BYTES + 1)]), "bytes each"),
    "not-utf-8": (altered(b"a\xff", [1, 1]), "not UTF-8"),
    "cut-inside-a-letter": (altered("é".encode(), [1, 1]), "not UTF-8"),
    "surrogate": (altered(b"\xed\xa0\x80", [3]), "not UTF-8"),
    "blank": (pack_keys([" \n", "a"]), "blank"),
    "twice": (pack_keys(["a", "a"]), "there twice"),
    "unsorted": (pack_keys(["b", "a"]), "increasing"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_report_is_refused_with_its_cause(case: str) -> None:
    arrays, cause = HOSTILE[case]
    with pytest.raises(InvalidRelease, match=cause):
        check_assortment(arrays, max_items=5)


def test_the_longest_key_and_the_largest_assortment_pass() -> None:
    listed = sorted("é" * (MAX_KEY_BYTES // 2 - 1) + letter for letter in "abcde")
    arrays = pack_keys(listed)
    assert check_assortment(arrays, max_items=5) is arrays
    assert unpack_keys(arrays) == tuple(listed)

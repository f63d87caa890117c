"""Laws of splitting (more in tests/property/test_data_splits.py)."""

from __future__ import annotations

import pandas as pd
import pytest

from common.data.catalogue import derive_catalogue
from common.data.marketplace import Marketplace
from common.data.schema import PlatformTable
from common.data.splits import leave_last_out, split_marketplace
from common.errors import DataError


def frame(pairs: list[tuple[str, str]], times: list[float] | None = None) -> pd.DataFrame:
    table = pd.DataFrame(pairs, columns=["user_id", "item_id"], dtype="str")
    return table if times is None else table.assign(timestamp=times)


def market(*tables: PlatformTable) -> Marketplace:
    return Marketplace(platforms=tables, catalogue=derive_catalogue(tables), source="test")


BOUGHT = [("1", "a"), ("1", "b"), ("1", "c"), ("2", "a")]


def test_the_latest_interaction_is_held_out() -> None:
    table = frame(BOUGHT, [2.0, 9.0, 1.0, 5.0])
    rest, held_out = leave_last_out(table, seed=0)
    assert held_out[["user_id", "item_id"]].to_numpy().tolist() == [["1", "b"]]
    assert rest["user_id"].tolist() == ["1", "1", "2"]  # user 2 keeps her only one


def test_places_take_one_interaction_after_the_other() -> None:
    table = frame(BOUGHT, [2.0, 9.0, 1.0, 5.0])
    for place, item in enumerate("bac"):
        rest, held_out = leave_last_out(table, seed=0, place=place)
        assert held_out[["user_id", "item_id"]].to_numpy().tolist() == [["1", item]]
        assert len(rest) == 3
    rest, held_out = leave_last_out(table, seed=0, place=3)  # she has no fourth
    assert rest["item_id"].tolist() == ["a", "b", "c", "a"]
    assert held_out.empty


@pytest.mark.parametrize("timed", [True, False])
def test_places_ask_the_same_users_for_something_else(timed: bool) -> None:
    pairs = [(f"{u:03d}", i) for u in range(200) for i in "abcdef"[: 1 + u % 6]]
    table = frame(pairs, [float(n % 3) for n in range(len(pairs))] if timed else None)
    found = [leave_last_out(table, seed=0, share=0.5, min_kept=2, place=p)[1] for p in range(4)]
    together = pd.concat(found)
    assert not together.duplicated(["user_id", "item_id"]).any()
    first, *others = (set(held_out["user_id"]) for held_out in found)
    assert first == others[0] == others[1]
    # Only those with more than three interactions have a fourth.
    assert others[2] == {user for user in first if int(user) % 6 >= 3}
    if timed:
        times = together.groupby("user_id")["timestamp"]
        assert (times.diff().dropna() <= 0).all()


def test_a_place_before_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="place >= 0"):
        leave_last_out(frame(BOUGHT), seed=0, place=-1)


@pytest.mark.parametrize("times", [None, [7.0] * 300])
def test_without_a_latest_each_interaction_is_as_likely(times: list[float] | None) -> None:
    # 100 users with items a, b, c: an item outside 33 +- 5 standard deviations (4.7) has a
    # false-alarm rate below 1e-5 per item; always taking the first or last row would fail.
    table = frame([(f"{u:03d}", i) for u in range(100) for i in "abc"], times)
    _, held_out = leave_last_out(table, seed=3)
    counts = held_out["item_id"].value_counts()
    assert counts.sum() == 100
    assert ((counts - 100 / 3).abs() < 24).all()


def test_another_user_changes_nothing_for_her() -> None:
    # What private training sees of a user must not depend on who else is there.
    table = frame([(f"{u:03d}", i) for u in range(200) for i in "abc"])
    without = table[table["user_id"] != "017"]
    rest, held_out = leave_last_out(table, seed=0, share=0.3)
    rest_without, held_out_without = leave_last_out(without, seed=0, share=0.3)
    for all_of, fewer in ((rest, rest_without), (held_out, held_out_without)):
        expected = all_of[all_of["user_id"] != "017"].reset_index(drop=True)
        pd.testing.assert_frame_equal(expected, fewer)


def test_platforms_draw_independently() -> None:
    pairs = [(f"{u:03d}", i) for u in range(100) for i in "abc"]
    one = PlatformTable(name="one", source="", interactions=frame(pairs))
    two = PlatformTable(name="two", source="", interactions=frame(pairs))
    splits = split_marketplace(market(one, two), seed=0)
    assert not splits["one"].test.equals(splits["two"].test)


def test_a_repeated_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        leave_last_out(frame([*BOUGHT, ("1", "a")]), seed=0)


def test_own_held_out_pairs_are_the_test_and_leave_the_training() -> None:
    own = PlatformTable(
        name="own",
        source="",
        interactions=frame(BOUGHT),
        held_out=frame([("1", "a"), ("3", "a")]),
    )
    other = PlatformTable(name="other", source="", interactions=frame(BOUGHT))
    splits = split_marketplace(market(own, other), seed=0)
    train, test, origin = splits["own"]
    assert origin == "held-out file"
    assert test.to_numpy().tolist() == [["1", "a"], ["3", "a"]]
    assert train.to_numpy().tolist() == [["1", "b"], ["1", "c"], ["2", "a"]]
    assert splits["other"].origin == "leave-one-out"
    assert len(splits["other"].test) == 1


def test_a_platform_splits_alike_whoever_else_takes_part() -> None:
    one = PlatformTable(name="one", source="", interactions=frame(BOUGHT))
    two = PlatformTable(name="two", source="", interactions=frame(BOUGHT))
    alone = split_marketplace(market(one), seed=5)["one"]
    together = split_marketplace(market(two, one), seed=5)["one"]
    pd.testing.assert_frame_equal(alone.test, together.test)


def test_a_platform_with_nothing_to_spare_is_refused() -> None:
    table = PlatformTable(name="p", source="", interactions=frame([("1", "a"), ("2", "a")]))
    with pytest.raises(DataError, match="too few interactions"):
        split_marketplace(market(table), seed=0)

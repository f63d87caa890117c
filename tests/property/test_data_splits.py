"""Splits are disjoint, complete, and blind to the order of rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from common.data.splits import leave_last_out

PAIRS = st.lists(
    st.tuples(st.sampled_from(["1", "01", "10", "é"]), st.sampled_from("abcdef")),
    unique=True,
    max_size=20,
)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    table = pd.DataFrame(draw(PAIRS), columns=["user_id", "item_id"], dtype="str")
    if draw(st.booleans()):
        times = st.lists(st.integers(0, 3), min_size=len(table), max_size=len(table))
        table["timestamp"] = np.array(draw(times), dtype=float)
    return table


def pairs(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(table["user_id"], table["item_id"], strict=True))


@given(
    table=tables(),
    seed=st.integers(0, 9),
    share=st.floats(0, 1),
    min_kept=st.integers(1, 3),
    place=st.integers(0, 4),
)
def test_leave_last_out(
    table: pd.DataFrame, seed: int, share: float, min_kept: int, place: int
) -> None:
    rest, held_out = leave_last_out(table, seed=seed, share=share, min_kept=min_kept, place=place)
    assert not pairs(rest) & pairs(held_out)
    assert pairs(rest) | pairs(held_out) == pairs(table)
    assert len(rest) + len(held_out) == len(table)
    sizes = table.groupby("user_id").size()
    eligible = set(sizes[sizes > max(min_kept, place)].index)
    chosen = set(held_out["user_id"])
    assert chosen <= eligible
    assert len(held_out) == len(chosen)
    if share == 1.0:
        assert chosen == eligible
    if "timestamp" in table.columns:
        times = table.groupby("user_id")["timestamp"]
        for user, time in zip(held_out["user_id"], held_out["timestamp"], strict=True):
            assert time == sorted(times.get_group(user))[-1 - place]

    shuffled = table.sample(frac=1, random_state=seed)
    again = leave_last_out(shuffled, seed=seed, share=share, min_kept=min_kept, place=place)
    pd.testing.assert_frame_equal(rest, again[0])
    pd.testing.assert_frame_equal(held_out, again[1])

"""What is written in any supported form is read back exactly, ids above all."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.readers import read_interactions

# Any printable text, spaces inside and leading zeros included; a blank id is an error.
IDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8
).filter(lambda text: text.strip() != "") | st.integers(0, 20).map(lambda k: f"{k:03d}")
ROWS = st.lists(
    st.tuples(IDS, IDS, st.floats(0, 5, allow_subnormal=False), st.integers(0, 2_000_000_000)),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, form=st.sampled_from(["\t", ";", "|", ",", "parquet"]), is_zipped=st.booleans())
def test_reading_gives_back_what_was_written(
    rows: list[tuple[str, str, float, int]], form: str, is_zipped: bool
) -> None:
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.dat"
        if form == "parquet":
            table.to_parquet(path)
        else:
            table.to_csv(path, sep=form, index=False)
            if is_zipped:
                path.write_bytes(gzip.compress(path.read_bytes()))
        read, num_duplicates = read_interactions(path)
    assert num_duplicates == 0
    assert read["user_id"].tolist() == table["user_id"].tolist()
    assert read["item_id"].tolist() == table["item_id"].tolist()
    assert read["rating"].tolist() == table["rating"].tolist()
    assert read["timestamp"].tolist() == table["timestamp"].tolist()


@given(rows=ROWS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_repeated_rows_are_counted_and_leave_the_pairs_unchanged(
    rows: list[tuple[str, str, float, int]], data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(rows), max_size=6))
    everything = data.draw(st.permutations(rows + repeated))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.csv"
        columns = ["user_id", "item_id", "rating", "timestamp"]
        pd.DataFrame(everything, columns=columns).to_csv(path, index=False)
        read, num_duplicates = read_interactions(path)
    assert num_duplicates == len(repeated)
    assert sorted(read.itertuples(index=False, name=None)) == sorted(rows)

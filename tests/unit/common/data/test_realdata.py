"""The XMRec markets read as published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.data.readers import read_marketplace
from common.data.splits import split_marketplace

if TYPE_CHECKING:
    from pathlib import Path

# Users, items and rows of the training files.
PUBLISHED = {
    "s1": (6466, 9762, 77173),
    "s2": (7109, 2198, 48302),
    "s3": (3328, 1245, 23367),
    "t1": (2697, 1357, 19615),
    "t2": (5482, 2917, 41226),
}


@pytest.mark.realdata
def test_the_five_markets_have_their_published_sizes(xmrec_folder: Path) -> None:
    market = read_marketplace(xmrec_folder)
    sizes = {
        p.name: (p.num_users, p.num_items, p.num_interactions + p.num_duplicates)
        for p in market.platforms
    }
    assert sizes == PUBLISHED
    touched = {item for p in market.platforms for item in p.interactions["item_id"]}
    assert len(touched) == 12_015
    assert market.catalogue.derived
    assert market.catalogue.num_items == 12_220  # with the items that are held out only
    for name, split in split_marketplace(market, seed=0).items():
        assert split.origin == "held-out file"
        assert len(split.test) == PUBLISHED[name][0]

"""Blocks of users, whose shapes follow from each user's own activity, and dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from client.trainer import NUMBERS_IN_BLOCK, blocks_of_users, dropped_out, uniforms_like, user_batch
from common.data.batches import MAX_POSITIVES, ROWS, places_of
from common.models.ncf import NcfConfig
from common.privacy.randomness import SeededRandom

NUM_ITEMS = 300
SOFTMAX = NcfConfig(dim=4)
SAMPLED = NcfConfig(dim=4, loss="sampled-softmax", num_negatives=5)


def purchases(counts: list[int]) -> csr_matrix:
    rows = np.zeros((len(counts), NUM_ITEMS), dtype=np.float32)
    for user, count in enumerate(counts):
        rows[user, np.random.default_rng(user).permutation(NUM_ITEMS)[:count]] = 1
    return csr_matrix(rows)


COUNTS = [0, 1, 8, 9, 16, 17, 40, 64, 65, 128, 129, MAX_POSITIVES, MAX_POSITIVES + 50] * 3


@pytest.mark.parametrize("config", [SOFTMAX, SAMPLED])
def test_every_sampled_user_is_in_one_block(config: NcfConfig) -> None:
    sample = np.arange(0, len(COUNTS), 2)
    blocks = blocks_of_users(config, purchases(COUNTS), sample)
    assert sorted(np.concatenate(blocks).tolist()) == sample.tolist()


def test_a_users_places_follow_from_her_own_activity() -> None:
    """Whoever is left out: the others are computed in the same shape as before."""
    matrix, everyone = purchases(COUNTS), np.arange(len(COUNTS))
    widths: dict[int, set[int]] = {}
    for sample in (everyone, everyone[:-13], everyone[::3], everyone[5:6]):
        for block in blocks_of_users(SAMPLED, matrix, sample):
            batch = user_batch(SAMPLED, matrix, block, np.random.default_rng(0))
            for user in block.tolist():
                widths.setdefault(user, set()).add(batch.items.shape[1])
    assert all(len(found) == 1 for found in widths.values())
    assert {found.pop() - 5 for found in widths.values()} == {8, 16, 32, 64, 128, MAX_POSITIVES}


def test_places_hold_every_item_up_to_the_cap() -> None:
    counts = np.arange(MAX_POSITIVES + 100)
    places = places_of(counts)
    assert (places >= np.minimum(counts, MAX_POSITIVES)).all()
    assert places.max() == MAX_POSITIVES
    assert (np.diff(places) >= 0).all()


def test_blocks_are_bounded_by_memory_and_never_smaller_than_what_is_computed_at_once() -> None:
    huge = csr_matrix((2000, NUMBERS_IN_BLOCK // 100))
    sizes = [len(block) for block in blocks_of_users(SOFTMAX, huge, np.arange(2000))]
    assert sizes == [100] * 20
    vast = csr_matrix((200, NUMBERS_IN_BLOCK))
    sizes = [len(block) for block in blocks_of_users(SOFTMAX, vast, np.arange(200))]
    assert sizes == [ROWS] * 3 + [200 - 3 * ROWS]


def test_dropout_leaves_out_its_part_and_keeps_the_mean() -> None:
    vectors = torch.full((2000, 10), 3.0)
    kept = dropped_out(vectors, 0.25, uniforms_like(vectors, SeededRandom(0)))
    assert sorted(kept.unique().tolist()) == [0.0, 4.0]
    assert kept.mean().item() == pytest.approx(3.0, abs=0.06)  # five standard errors
    for axis in (0, 1):  # every number has a coin of its own
        assert ((kept == 0).float().mean(axis) < 1).all()
        assert ((kept == 0).float().mean(axis) > 0).any()


def test_dropout_repeats_its_coins_and_changes_nothing_in_place() -> None:
    vectors = torch.arange(1.0, 41.0).reshape(4, 10)
    before = vectors.clone()
    first, again, other = (
        dropped_out(vectors, 0.5, uniforms_like(vectors, SeededRandom(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(vectors, before)
    assert torch.equal(dropped_out(vectors, 0.0, uniforms_like(vectors, SeededRandom(0))), before)

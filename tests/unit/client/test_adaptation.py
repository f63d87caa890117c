"""Every choice is made on the folds alone; joining is served only where it is clearly better."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client import adaptation
from client.adaptation import Adapted, fit_alone, join
from client.local_models.ease import MAX_ITEMS
from client.local_models.item_knn import fit_item_knn
from client.parts import Blend, ItemScores, ItemWeights
from client.validation import Fold, ndcg
from common.models.ncf import NcfConfig
from common.models.popularity import popularity_scores
from tests.unit.client.worlds import (
    NUM_ITEMS,
    Shop,
    matrix,
    of_groups,
    of_nothing,
    shop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from common.models.partition import Arrays

CONFIG = NcfConfig(dim=4)
NAMES = ["popularity", "item_knn", "ease", "als", "ncf"]


def alone_at(place: Shop) -> Adapted:
    return fit_alone(place.interactions, place.folds, CONFIG, max_epochs=4, seed=0)


@cache
def fitted(seed: int, num_folds: int = 1) -> tuple[Shop, Adapted]:
    place = shop(seed, num_users=70, num_folds=num_folds)
    return place, alone_at(place)


def neighbours(history: csr_matrix) -> ItemWeights:
    return ItemWeights(weights=fit_item_knn(history, neighbours=NUM_ITEMS, shrink=10.0))


def quickly(place: Shop) -> Adapted:
    """Alone with ItemKNN only: for laws over many shops."""
    found = adaptation._best([neighbours], place.interactions, place.folds)
    return adaptation._only({"item_knn": found}, "item_knn")


def fresh_ndcg(adapted: Adapted, place: Shop) -> float:
    """NDCG@10 of what is served, on items that nobody who fitted has seen."""
    fold = Fold(history=place.interactions, held_out=place.test)
    scores = adapted.blend.scores(fold.users, place.interactions)
    return float(ndcg((scores,), (fold,)).mean())


# --- Alone ---------------------------------------------------------------------------------------


def test_alone_has_all_parts_and_serves_the_sum_of_some() -> None:
    place, adapted = fitted(0)
    assert list(adapted.blend.parts) == NAMES
    assert adapted.blend.weights.keys() <= set(NAMES)
    assert all(weight > 0 for weight in adapted.blend.weights.values())
    best = max(
        fresh_ndcg(
            Adapted(blend=Blend(parts=adapted.blend.parts, weights={name: 1.0}), scores=()), place
        )
        for name in NAMES
    )
    assert fresh_ndcg(adapted, place) > best - 0.02


@pytest.mark.parametrize("num_folds", [1, 2])
def test_scores_are_those_of_the_blend_fitted_on_each_fold(num_folds: int) -> None:
    place, adapted = fitted(1, num_folds)
    assert len(adapted.scores) == num_folds
    only = fit_alone(place.folds[0].history, place.folds, CONFIG, max_epochs=4, seed=0)
    assert only.blend.weights == adapted.blend.weights
    for ours, theirs in zip(adapted.scores, only.scores, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    fold = place.folds[0]
    served = only.blend.scores(fold.users, fold.history)
    np.testing.assert_allclose(adapted.scores[0], served, rtol=1e-4, atol=1e-5)


def test_the_parts_that_are_served_are_fitted_on_everything() -> None:
    """What the validation users gave up is in them, and is not in what the choice was made on."""
    place, adapted = fitted(0)
    popularity = adapted.blend.parts["popularity"]
    assert isinstance(popularity, ItemScores)
    np.testing.assert_array_equal(
        popularity.values, np.log1p(popularity_scores(place.interactions))
    )
    on_fold = np.log1p(popularity_scores(place.folds[0].history))
    assert not np.array_equal(popularity.values, on_fold)
    # Two items that only the held-out interactions bring together.
    user = 0
    (given_up,) = place.folds[0].held_out[user].indices
    others = place.folds[0].history[user].indices
    for name in ("item_knn", "ease"):
        part = adapted.blend.parts[name]
        assert isinstance(part, ItemWeights)
        together = place.folds[0].history.T @ place.folds[0].history
        new = [item for item in others if together[item, given_up] == 0]
        assert new or name != "item_knn"
        assert all(part.weights[item, given_up] > 0 for item in new)
    on_fold_alone = fit_alone(place.folds[0].history, place.folds, CONFIG, max_epochs=4, seed=0)
    for name in ("als", "ncf"):
        less, served = (
            found.blend.parts[name].scores(np.array([user]), place.interactions)
            for found in (on_fold_alone, adapted)
        )
        assert not np.allclose(served, less)


@dataclass(frozen=True)
class Spy:
    """Remembers what it was fitted on and scores nothing."""

    seen: list[csr_matrix] = field(default_factory=list)

    def __call__(self, history: csr_matrix) -> ItemScores:
        self.seen.append(history)
        return ItemScores(values=np.zeros(NUM_ITEMS, dtype=np.float32))


def test_a_choice_sees_the_folds_and_the_rest_comes_after_it() -> None:
    place = shop(0, num_users=30, num_folds=2)
    fits = [Spy(), Spy()]
    adaptation._best(fits, place.interactions, place.folds)
    histories = [id(fold.history) for fold in place.folds]
    # Of equal settings the first is taken; the other is never fitted on everything.
    assert [id(seen) for seen in fits[0].seen] == [*histories, id(place.interactions)]
    assert [id(seen) for seen in fits[1].seen] == histories


def test_the_setting_that_validates_best_is_taken() -> None:
    place = shop(0, num_users=60)

    def scores(values: np.ndarray) -> Callable[[csr_matrix], ItemScores]:
        return lambda _history: ItemScores(values=values.astype(np.float32))

    liked = popularity_scores(place.folds[0].held_out)
    found = adaptation._best(
        [scores(-liked), scores(liked), scores(0 * liked)], place.interactions, place.folds
    )
    np.testing.assert_array_equal(found.part.scores(np.array([0]), place.interactions)[0], liked)


def test_what_the_folds_do_not_say_changes_no_choice() -> None:
    """Other interactions outside the folds change what is served, but no weight and no score."""
    place, adapted = fitted(0)
    other = place.interactions.copy()
    other.indices = np.roll(other.indices, 7)
    other = csr_matrix((other.toarray() > 0).astype(np.float32))
    found = fit_alone(other, place.folds, CONFIG, max_epochs=4, seed=0)
    assert found.blend.weights == adapted.blend.weights
    np.testing.assert_array_equal(found.scores[0], adapted.scores[0])
    joined, found = (
        join(adapted, {"pairs": of_groups()}, everything, place.folds)
        for everything in (place.interactions, other)
    )
    assert "pairs" in joined.blend.weights
    assert found.blend.weights == joined.blend.weights
    np.testing.assert_array_equal(found.scores[0], joined.scores[0])


class Popular:
    """Stands in for the one part whose random start depends on the order of users."""

    epochs = 1

    def __init__(self, history: csr_matrix) -> None:
        self.values = popularity_scores(history) % 3

    def scores(self, users: np.ndarray, _history: csr_matrix | None = None) -> np.ndarray:
        return np.tile(self.values, (len(users), 1))

    def arrays(self) -> Arrays:
        return {}


@pytest.mark.parametrize("num_folds", [1, 2])
def test_the_order_of_users_changes_nothing(
    num_folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        adaptation, "fit_personal_ncf", lambda _config, history, *_, **__: Popular(history)
    )
    place = shop(2, num_users=80, num_folds=num_folds)
    order = np.random.default_rng(0).permutation(80)
    moved = Shop(
        interactions=place.interactions[order],
        folds=tuple(
            Fold(history=fold.history[order], held_out=fold.held_out[order]) for fold in place.folds
        ),
        test=place.test[order],
    )
    federated = {"pairs": of_groups(), "noise": of_nothing(3)}
    before, after = (join(alone_at(p), federated, p.interactions, p.folds) for p in (place, moved))
    assert before.blend.weights.keys() == after.blend.weights.keys()
    for name, weight in before.blend.weights.items():
        assert after.blend.weights[name] == pytest.approx(weight, rel=1e-4)
    everyone = np.arange(80)
    np.testing.assert_allclose(
        before.blend.scores(order, place.interactions),
        after.blend.scores(everyone, moved.interactions),
        rtol=1e-3,
        atol=1e-3,
    )


def test_ncf_fits_as_long_as_the_first_fold_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    place = shop(2, num_users=30, num_folds=2)
    fits: list[tuple[int, int, int]] = []

    def fit(_: NcfConfig, history: csr_matrix, held_out: csr_matrix, **options: int) -> Popular:
        fits.append((id(history), held_out.nnz, options["max_epochs"]))
        return Popular(history)

    monkeypatch.setattr(adaptation, "fit_personal_ncf", fit)
    alone_at(place)
    first, second = place.folds
    assert fits == [
        (id(first.history), first.held_out.nnz, 4),
        (id(first.history), 0, Popular.epochs),
        (id(second.history), 0, Popular.epochs),
        (id(place.interactions), 0, Popular.epochs),
    ]


def test_the_same_arguments_give_the_same_bits_and_stay_as_they_were() -> None:
    place, adapted = fitted(3)
    copies = [place.interactions.copy(), place.folds[0].history.copy()]
    again = alone_at(place)
    joined, joined_again = (
        join(a, {"pairs": of_groups()}, place.interactions, place.folds) for a in (adapted, again)
    )
    for first, second in ((adapted, again), (joined, joined_again)):
        assert first.blend.weights == second.blend.weights
        np.testing.assert_array_equal(first.scores[0], second.scores[0])
    for given, copied in zip((place.interactions, place.folds[0].history), copies, strict=True):
        assert (given != copied).nnz == 0
    assert "pairs" not in adapted.blend.parts


@pytest.mark.parametrize(("most", "name"), [(MAX_ITEMS, "ease"), (10, "item_knn")])
def test_without_validation_users_a_linear_model_serves_alone(
    most: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "MAX_ITEMS", most)
    everything = shop(0, num_users=40).interactions
    nobody = Fold(history=everything, held_out=csr_matrix(everything.shape, dtype=np.float32))
    place = Shop(interactions=everything, folds=(nobody,), test=nobody.held_out)
    adapted = alone_at(place)
    assert ("ease" in adapted.blend.parts) == (name == "ease")
    assert adapted.blend.weights == {name: 1.0}
    assert adapted.scores[0].shape == (0, NUM_ITEMS)
    joined = join(adapted, {"pairs": of_groups()}, everything, place.folds)
    assert joined.blend.weights == adapted.blend.weights


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "pairs", [[], [(0, 1)], [(0, 1), (0, 2), (0, 3)]], ids=["nothing", "one", "some"]
)
@pytest.mark.parametrize("num_users", [1, 2])
def test_the_smallest_platforms_are_served(pairs: list[tuple[int, int]], num_users: int) -> None:
    history = matrix(pairs, num_users)
    for held_out in ([], [(0, 5)]):
        fold = Fold(history=history, held_out=matrix(held_out, num_users))
        everything = matrix(pairs + held_out, num_users)
        place = Shop(interactions=everything, folds=(fold,), test=fold.held_out)
        adapted = alone_at(place)
        joined = join(adapted, {"pairs": of_groups()}, everything, (fold,))
        assert joined.blend.weights == adapted.blend.weights  # one judgement decides nothing
        scores = joined.blend.scores(np.arange(num_users), everything)
        assert scores.shape == (num_users, NUM_ITEMS)
        assert np.isfinite(scores).all()


# --- Joined --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_folds", [1, 2])
def test_a_similarity_that_knows_is_served_and_helps(num_folds: int) -> None:
    place, alone = fitted(0, num_folds)
    joined = join(alone, {"pairs": of_groups()}, place.interactions, place.folds)
    assert joined.blend.weights["pairs"] > 0
    assert {k: joined.blend.weights[k] for k in alone.blend.weights} == alone.blend.weights
    assert ndcg(joined.scores, place.folds).mean() > ndcg(alone.scores, place.folds).mean()
    assert fresh_ndcg(joined, place) > fresh_ndcg(alone, place)


def test_a_similarity_that_knows_is_served_at_nearly_every_shop() -> None:
    served, gains = 0, []
    for seed in range(30):
        place = shop(seed, num_users=100)
        alone = quickly(place)
        joined = join(alone, {"pairs": of_groups()}, place.interactions, place.folds)
        served += "pairs" in joined.blend.weights
        gains.append(fresh_ndcg(joined, place) - fresh_ndcg(alone, place))
    assert served >= 28
    assert np.mean(gains) > 0.02


def test_a_similarity_that_knows_nothing_is_mostly_refused_and_costs_next_to_nothing() -> None:
    """One standard error lets about one in eight pass, with a small weight: that is its price."""
    served, gains = 0, []
    for seed in range(100):
        place = shop(seed, num_users=100)
        alone = quickly(place)
        joined = join(alone, {"noise": of_nothing(seed)}, place.interactions, place.folds)
        served += "noise" in joined.blend.weights
        gains.append(fresh_ndcg(joined, place) - fresh_ndcg(alone, place))
    assert served <= 20
    assert np.mean(gains) > -0.001
    assert np.min(gains) > -0.03


def test_what_is_refused_is_still_there_without_a_weight() -> None:
    place, alone = fitted(0)
    against = of_groups()
    against = csr_matrix(((against.toarray() == 0) * 1.0).astype(np.float32))
    joined = join(alone, {"wrong": against}, place.interactions, place.folds)
    assert "wrong" in joined.blend.parts
    assert joined.blend.weights == alone.blend.weights
    np.testing.assert_array_equal(joined.scores[0], alone.scores[0])
    everyone = np.arange(place.interactions.shape[0])
    np.testing.assert_array_equal(
        joined.blend.scores(everyone, place.interactions),
        alone.blend.scores(everyone, place.interactions),
    )


def test_one_part_is_refused_and_another_served() -> None:
    place, alone = fitted(0)
    against = csr_matrix((of_groups().toarray() == 0).astype(np.float32))
    federated = {"wrong": against, "pairs": of_groups()}
    joined = join(alone, federated, place.interactions, place.folds)
    assert joined.blend.weights.keys() - alone.blend.weights.keys() == {"pairs"}


def test_others_count_less_for_what_the_platform_sells_itself() -> None:
    place, alone = fitted(0)
    part = join(alone, {"pairs": of_groups()}, place.interactions, place.folds).blend.parts["pairs"]
    assert isinstance(part, ItemWeights)
    bought = popularity_scores(place.interactions)
    expected = of_groups().toarray() * (5.0 / (5.0 + bought))[None, :]
    np.testing.assert_allclose(part.weights.toarray(), expected, rtol=1e-6)
    assert part.weights.dtype == np.float32


def test_nothing_from_others_changes_nothing() -> None:
    place, alone = fitted(0)
    empty = csr_matrix((NUM_ITEMS, NUM_ITEMS), dtype=np.float32)
    for federated in ({}, {"pairs": empty}):
        joined = join(alone, federated, place.interactions, place.folds)
        assert joined.blend.weights == alone.blend.weights


def test_a_similarity_of_other_items_is_refused() -> None:
    place, alone = fitted(0)
    with pytest.raises(ValueError, match=r"pairs: found a similarity of shape \(3, 3\)"):
        join(alone, {"pairs": csr_matrix((3, 3))}, place.interactions, place.folds)


# --- The gate ------------------------------------------------------------------------------------

JUDGED, LISTED = 200, 400
ALONE = np.random.default_rng(0).integers(5, LISTED, size=JUDGED)
GATE = Fold(
    history=csr_matrix((JUDGED, LISTED), dtype=np.float32),
    held_out=matrix([(user, 0) for user in range(JUDGED)], JUDGED, LISTED),
)


def at_ranks(ranks: np.ndarray) -> np.ndarray:
    """Scores that put each user's held-out item, number 0, at a chosen rank (from 1)."""
    scores = np.tile(np.arange(LISTED, 0, -1, dtype=np.float32), (len(ranks), 1))
    scores[:, 0] = LISTED - ranks + 0.5
    return scores


def passes(
    alone: np.ndarray, joined: np.ndarray, *, fold: Fold = GATE, by_rank: bool = True
) -> bool:
    """Whether ``joined`` is served on top of ``alone``, where its weight alone decides."""
    adapted = Adapted(blend=Blend(parts={}, weights={}), scores=(at_ranks(alone),))
    # With a weight that large, what was there before no longer shows.
    found = adaptation.Fitted(
        part=ItemScores(values=np.zeros(LISTED, dtype=np.float32)), scores=(at_ranks(joined),)
    )
    after = adaptation._with_part(adapted, "new", found, (fold,), weights=(1e6,), by_rank=by_rank)
    assert "new" in after.blend.parts
    return "new" in after.blend.weights


def test_clearly_better_ranks_are_served() -> None:
    assert passes(ALONE, np.maximum(1, ALONE // 4))


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_equal_or_worse_ranks_are_not(factor: float) -> None:
    assert not passes(ALONE, np.minimum(LISTED, ALONE * factor).astype(int))


@pytest.mark.parametrize(("share", "is_served"), [(0.5, False), (0.55, True)])
def test_a_gain_of_ranks_within_one_standard_error_is_not(share: float, *, is_served: bool) -> None:
    """Some gain from rank 5, others lose; NDCG@10 gains clearly either way."""
    alone = np.full(JUDGED, 5)
    joined = np.where(np.arange(JUDGED) < share * JUDGED, 3, 8)
    assert np.log(alone / joined).mean() > 0
    assert passes(alone, joined) == is_served
    assert passes(alone, joined, by_rank=False)


def test_better_ranks_below_the_top_do_not_pay_for_a_worse_top() -> None:
    users = np.arange(JUDGED)
    alone, joined = np.where(users < 20, 1, 390), np.where(users < 20, 11, 40)
    assert not passes(alone, joined)
    assert not passes(alone, joined, by_rank=False)


def test_a_better_top_does_not_pay_for_worse_ranks() -> None:
    users = np.arange(JUDGED)
    alone, joined = np.where(users < 20, 11, 40), np.where(users < 20, 1, 390)
    assert not passes(alone, joined)
    assert passes(alone, joined, by_rank=False)  # as between the platform's own parts


@pytest.mark.parametrize(("low", "is_served"), [(390, False), (40, True)])
def test_joining_asks_for_ranks_as_well(low: int, *, is_served: bool) -> None:
    """Alone all items score the same; for some users joining knows the first, for most it errs."""
    users = np.arange(JUDGED)
    history = matrix([(user, user + 1) for user in range(JUDGED)], JUDGED, LISTED)
    fold = Fold(history=history, held_out=GATE.held_out)
    alone = Adapted(
        blend=Blend(parts={}, weights={}), scores=(np.zeros((JUDGED, LISTED), dtype=np.float32),)
    )
    said = np.zeros((LISTED, LISTED), dtype=np.float32)
    said[users + 1] = at_ranks(np.where(users < 20, 1, low))
    joined = join(alone, {"pairs": csr_matrix(said)}, history, (fold,))
    assert ("pairs" in joined.blend.weights) == is_served


@pytest.mark.parametrize("judged", [0, 1])
def test_too_few_validation_users_decide_nothing(judged: int) -> None:
    users = [(user, 0) for user in range(judged)]
    fold = Fold(history=GATE.history, held_out=matrix(users, JUDGED, LISTED))
    assert not passes(np.full(judged, 100), np.full(judged, 1), fold=fold)


@pytest.mark.parametrize(
    ("differences", "is_gain"),
    [
        ([], False),
        ([1.0], False),
        ([0.0, 0.0], False),
        ([0.1, 0.1], True),
        ([-0.1, -0.1], False),
        ([0.0, 2.0], False),  # its mean is just one standard error
        ([0.01, 2.0], True),
        ([-0.01, 2.0], False),
        ([1.0, 3.0], True),
    ],
)
def test_a_gain_is_a_mean_above_its_standard_error(
    differences: Sequence[float], *, is_gain: bool
) -> None:
    assert adaptation._gains(np.array(differences)) is is_gain

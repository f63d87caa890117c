"""Terms under which a sum would say too much are refused; those that remain can be opened."""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from common.errors import ConfigError
from common.secagg.lattice import Lattice
from common.secagg.terms import MAX_PARTICIPANTS, SecaggTerms, noise_share

if TYPE_CHECKING:
    from collections.abc import Iterator

LATTICE = Lattice(bits=32, exponent=-20)


def names(number: int) -> tuple[str, ...]:
    return tuple(f"p{place:04}" for place in range(number))


def terms(number: int = 10, **changed: Any) -> SecaggTerms:  # noqa: ANN401 - of any field
    fields: dict[str, Any] = {
        "participants": names(number),
        "max_dropped": 1,
        "max_colluding": 1,
        "neighbours": number - 1,
        "lattice": LATTICE,
    }
    return SecaggTerms(**(fields | changed))


def allowed(most: int) -> Iterator[SecaggTerms]:
    """All terms of up to ``most`` platforms that are not refused."""
    for number in range(2, most + 1):
        for dropped in range(number):
            for colluding in range(1, number):
                for neighbours in range(1, number):
                    try:
                        yield terms(
                            number,
                            max_dropped=dropped,
                            max_colluding=colluding,
                            neighbours=neighbours,
                        )
                    except ConfigError:
                        continue


ALLOWED = list(allowed(12))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"participants": ()}, "participants: expected 2 to 1000 names, increasing, each once"),
        ({"participants": ("a",)}, "participants: expected 2 to 1000"),
        ({"participants": names(MAX_PARTICIPANTS + 1)}, "participants: expected 2 to 1000"),
        ({"participants": ("b", "a", "c")}, "participants: expected 2 to 1000 names, increasing"),
        ({"participants": ("a", "a", "b")}, "each once"),
        ({"participants": ("", "a", "b")}, "without slashes and control characters"),
        ({"participants": ("../a", "b", "c")}, "without slashes"),
        ({"participants": ("a", "b", "c\\d")}, "without slashes"),
        ({"participants": ("a\n", "b", "c")}, "control characters"),
        ({"participants": ("a", "b" * 201, "c")}, "without slashes"),
        ({"max_dropped": -1}, "max_dropped: found -1, expected at least 0"),
        ({"max_colluding": 0}, "max_colluding: found 0, expected at least 1"),
        ({"max_colluding": -1}, "max_colluding: found -1"),
        ({"max_dropped": 5}, "5 of 10 platforms may drop out and 1 may collude.*more than 5.5"),
        ({"max_colluding": 8}, "1 of 10 platforms may drop out and 8 may collude.*more than 9"),
        ({"neighbours": 0}, "neighbours: found 0, expected an even number of at least 3"),
        ({"neighbours": 2}, "neighbours: found 2, expected an even number of at least 3"),
        ({"neighbours": 5}, "neighbours: found 5, expected an even number of at least 3"),
        ({"neighbours": 4, "max_colluding": 4}, "neighbours: found 4, .* at least 6 .*or 9 for"),
        ({"neighbours": 4, "max_dropped": 2}, "neighbours: found 4, .* at least 5"),
    ],
)
def test_terms_that_would_say_too_much_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        terms(**changed)


def test_a_list_of_survivors_is_the_only_one() -> None:
    """Two lists would need t confirmations each, of platforms of which only c sign both."""
    for found in ALLOWED:
        number, colluding = len(found.participants), found.max_colluding
        assert 2 * (found.min_summed - colluding) > number - colluding


def test_some_terms_are_allowed_for_every_number() -> None:
    assert {len(found.participants) for found in ALLOWED} == set(range(2, 13))
    assert any(not found.is_complete for found in ALLOWED)
    assert max(found.max_dropped for found in ALLOWED) == 5
    assert max(found.max_colluding for found in ALLOWED) == 11


def test_too_many_for_the_lattice_are_refused() -> None:
    largest = Lattice(bits=32, exponent=0)
    largest.check_number(2047)
    with pytest.raises(ConfigError, match="32 bits are not enough for 2048 platforms"):
        largest.check_number(2048)


@pytest.mark.parametrize(("summed", "colluding"), [(2, 1), (3, 1), (10, 3), (100, 30)])
def test_the_honest_platforms_of_the_smallest_sum_add_all_of_the_noise(
    summed: int, colluding: int
) -> None:
    assert (summed - colluding) * noise_share(summed, colluding) ** 2 == pytest.approx(1.0)


def graph(found: SecaggTerms, present: tuple[str, ...]) -> dict[str, set[str]]:
    return {name: set(found.neighbours_of(name, present)) for name in present}


def is_connected(edges: dict[str, set[str]], without: set[str]) -> bool:
    left = set(edges) - without
    reached, waiting = set(), [min(left)]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += edges[name] & left
    return reached == left


def test_neighbours_are_mutual_and_as_many_as_agreed() -> None:
    for found in ALLOWED:
        for dropped in range(found.max_dropped + 1):
            present = found.participants[dropped:]
            edges = graph(found, present)
            degree = min(found.neighbours, len(present) - 1)
            for name, others in edges.items():
                assert name not in others
                assert len(others) == degree
                assert all(name in edges[other] for other in others)
            listed = found.neighbours_of(present[0], present)
            assert list(listed) == sorted(listed)


def test_survivors_stay_connected_whoever_is_missing_or_colludes() -> None:
    for found in ALLOWED:
        if len(found.participants) > 10 or found.is_complete:
            continue
        for present in (found.participants, found.participants[: found.min_summed]):
            edges = graph(found, present)
            missing = found.max_colluding + found.max_dropped
            for without in combinations(present, min(missing, len(present) - 1)):
                assert is_connected(edges, set(without))


def test_fewer_neighbours_could_be_cut_off() -> None:
    found = terms(10, neighbours=4)
    edges = graph(found, found.participants)
    fewer = {name: set(sorted(others)[:2]) for name, others in edges.items()}
    cut = {frozenset(gone) for gone in combinations(found.participants, 2)}
    assert any(not is_connected(fewer, set(gone)) for gone in cut)
    around = found.neighbours_of("p0005", found.participants)
    assert not is_connected(edges, set(around)), "all neighbours gone: nobody is reached"


@pytest.mark.parametrize(("colluding", "dropped"), [(1, 10), (9, 10), (3, 1), (19, 0)])
def test_a_hundred_stay_connected(colluding: int, dropped: int) -> None:
    least = colluding + max(dropped + 1, 2 * dropped)
    found = terms(100, max_dropped=dropped, max_colluding=colluding, neighbours=least + least % 2)
    edges, random = graph(found, found.participants), Random(5)  # noqa: S311 - which platforms are tried
    for _ in range(100):
        gone = set(random.sample(found.participants, colluding + dropped))
        assert is_connected(edges, gone)
    place = random.randrange(100)
    run = {found.participants[(place + i) % 100] for i in range(colluding + dropped)}
    assert is_connected(edges, run), "one run in a row"


def test_colluding_platforms_never_hold_enough_shares() -> None:
    for found in ALLOWED:
        if found.min_summed - found.max_colluding < 2:
            continue  # the one honest platform of the sum has all of the noise of its own
        for present in range(found.min_summed, len(found.participants) + 1):
            held_by = min(found.neighbours, present - 1)
            needed = found.shares_needed(held_by, present)
            assert needed > found.max_colluding


def test_enough_holders_remain_whoever_is_missing() -> None:
    """Of those present, all but t may be gone when shares are revealed, neighbours first."""
    for found in ALLOWED:
        for present in range(found.min_summed, len(found.participants) + 1):
            held_by = min(found.neighbours, present - 1)
            needed = found.shares_needed(held_by, present)
            assert 1 <= needed <= held_by
            gone = present - found.min_summed
            assert held_by - gone >= needed
            assert held_by - gone - 1 < needed, "one missing platform more is one too many"


def test_nobody_can_be_cut_off_by_different_lists() -> None:
    """A coordinator keeps d others from each of a group, which is in the sum without confirming it.

    The group is next to each other, which leaves it the fewest neighbours outside. Of these, c
    collude, d less the size of the group are not in the sum, and d can be kept from each member.
    """
    for found in ALLOWED:
        number, dropped, colluding = (
            len(found.participants),
            found.max_dropped,
            found.max_colluding,
        )
        if colluding + 2 > found.min_summed:
            continue
        edges = graph(found, found.participants)
        for size in range(1, dropped + 1):
            group = set(found.participants[:size])
            outside = set(found.participants) - group
            # Who is closest to the group is worth most to the coordinator.
            ranked = sorted(outside, key=lambda name: -len(edges[name] & group))
            gone = set(ranked[: colluding + dropped - size])
            left = [len(edges[name] - group - gone) for name in sorted(group)]
            if len(outside) - len(gone) == 0:
                continue
            assert max(left) > dropped or found.is_complete
            if found.is_complete:
                assert number - size - len(gone) > dropped

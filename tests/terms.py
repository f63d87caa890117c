"""Terms of a secure sum, for tests that are about something else."""

from __future__ import annotations

from common.secagg.lattice import choose_lattice
from common.secagg.terms import SecaggTerms, noise_share


def secagg_terms(
    num_platforms: int,
    *,
    noise_std: float = 1.0,
    largest_sum: float = 1e4,
    max_dropped: int = 0,
    max_colluding: int = 1,
    own: str = "north",
) -> SecaggTerms:
    """Of ``own`` and others, all of them neighbours.

    Args:
        num_platforms: K.
        noise_std: standard deviation that an observer must face.
        largest_sum: bound on the numbers of one platform's sum.
        max_dropped: d.
        max_colluding: c.
        own: the platform that the test is about.
    """
    names = tuple(sorted([own, *(f"p{number:04}" for number in range(1, num_platforms))]))
    std = noise_std * noise_share(num_platforms - max_dropped, max_colluding)
    return SecaggTerms(
        participants=names,
        max_dropped=max_dropped,
        max_colluding=max_colluding,
        neighbours=num_platforms - 1,
        lattice=choose_lattice(std, largest_sum, num_platforms),
    )

"""What all platforms of a secure sum agree on: who takes part, who may fail, and on which lattice.

K platforms are asked, at most d of them may drop out, and at most c may work together with the
coordinator. A sum is opened if at least t = K - d are in it; each adds 1/sqrt(t - c) of the noise,
so that whoever knows the parts of c platforms still faces all of the noise. The guarantees need

- ``2 t > K + c``. A platform confirms one list of survivors for a request, for ever, and a list
  counts if t platforms confirmed it. Two lists would need 2 (t - c) honest confirmations of K - c
  honest platforms: so there is one, and with it one sum.
- ``neighbours >= c + d + 1``. Masks are agreed on, and shares are held, between neighbours in a
  circulant graph in the order of names, which stays connected when any c + d platforms are taken
  away (Harary 1962): there is no group of survivors whose own sum could be told. Those who help to
  open the sum are missing d of a platform's shares at most, and colluding ones hold c of them.
  Bell et al. 2020 draw their graph at random, for numbers of
  colluding platforms that grow with K; a fixed one needs no coin that the coordinator could load.
- ``neighbours >= c + 2 d`` as well, or everybody. A coordinator that lies may tell a platform that
  d others dealt no shares, so that it leaves out their masks; if g such platforms are in the sum
  and cannot confirm it, it lacks d - g at most. Each has at most g - 1 neighbours among them, c
  that collude, d - g that lack and d that were kept from it: with one more it has a mask in common
  with somebody else in the sum. If everybody is a neighbour, it knows t of K and the sum has t + g,
  so more than c + g are in both.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from common.errors import ConfigError
from common.secagg.lattice import Lattice

MAX_PARTICIPANTS = 1000
_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SecaggTerms:
    """One sum's terms; part of the request, and so of everything that is signed."""

    participants: tuple[str, ...]
    """Names of the K platforms that are asked, increasing."""
    max_dropped: int
    """d: platforms that may drop out, at whatever stage. Each costs noise."""
    max_colluding: int
    """c: platforms that may tell the coordinator all they know."""
    neighbours: int
    """Platforms that each one agrees on masks with: even, or at least K - 1 for all of them."""
    lattice: Lattice
    """What is summed."""

    def __post_init__(self) -> None:
        """Refuse terms under which the sum would say more than it should."""
        names, number = self.participants, len(self.participants)
        if not 2 <= number <= MAX_PARTICIPANTS or list(names) != sorted(set(names)):
            msg = f"participants: expected 2 to {MAX_PARTICIPANTS} names, increasing, each once."
            raise ConfigError(msg)
        if not all(_NAME.fullmatch(name) for name in names):
            msg = "participants: expected names without slashes and control characters."
            raise ConfigError(msg)
        if self.max_dropped < 0 or self.max_colluding < 1:
            msg = (
                f"max_dropped: found {self.max_dropped}, expected at least 0; max_colluding: "
                f"found {self.max_colluding}, expected at least 1 (a curious platform)."
            )
            raise ConfigError(msg)
        if 2 * self.min_summed <= number + self.max_colluding:
            msg = (
                f"max_dropped: {self.max_dropped} of {number} platforms may drop out and "
                f"{self.max_colluding} may collude, which is too many: more than "
                f"{(number + self.max_colluding) / 2:g} have to stay."
            )
            raise ConfigError(msg)
        if not self.is_complete:
            least = self.max_colluding + max(self.max_dropped + 1, 2 * self.max_dropped)
            if self.neighbours % 2 or self.neighbours < least:
                msg = (
                    f"neighbours: found {self.neighbours}, expected an even number of at least "
                    f"{least} (max_colluding + max_dropped + 1, and max_colluding + 2 "
                    f"max_dropped), or {number - 1} for everybody."
                )
                raise ConfigError(msg)
        self.lattice.check_number(number)

    @property
    def min_summed(self) -> int:
        """t: platforms that are in the sum at least, or it is not opened."""
        return len(self.participants) - self.max_dropped

    @property
    def is_complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.neighbours >= len(self.participants) - 1

    @property
    def noise_share(self) -> float:
        """Each platform's noise over the noise that an observer must face."""
        return noise_share(self.min_summed, self.max_colluding)

    def neighbours_of(self, name: str, present: tuple[str, ...]) -> tuple[str, ...]:
        """Who ``name`` agrees on masks with, of the platforms that are ``present`` (increasing)."""
        number, place = len(present), present.index(name)
        if self.neighbours >= number - 1:
            return present[:place] + present[place + 1 :]
        steps = range(1, self.neighbours // 2 + 1)
        places = {(place + sign * step) % number for step in steps for sign in (-1, 1)}
        return tuple(present[other] for other in sorted(places - {place}))

    def shares_needed(self, num_neighbours: int, num_present: int) -> int:
        """Shares that open a secret of one who has ``num_neighbours`` among ``num_present``.

        Of those who are present when shares are dealt, all but ``num_present - t`` help to open.
        """
        return num_neighbours - (num_present - self.min_summed)


def noise_share(min_summed: int, max_colluding: int) -> float:
    """1/sqrt(t - c): so much of the noise does each of t platforms add."""
    return 1.0 / math.sqrt(min_summed - max_colluding)

"""The sums before the first round: which items go together, asked of every platform once.

First the items' counts, which say which items to pair and with what weights; then the pairs. Both
are sums over the platforms, written down as soon as they are there: a resumed run asks no more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message

from common.errors import InvalidRelease, RunFailed, StateError
from common.messages import SUM, SumRequest
from common.models.pairs import MAX_COUNTED_ITEMS, item_weights, most_counted, num_pairs
from common.models.partition import check_asked, check_sum
from common.wire import encode
from server.aggregation import StreamingSum
from server.checkpoint import CollectedSum, CollectedSums
from server.records import asked_mechanism, note_release
from server.releases import check_sum_release, release_bytes
from server.secure_sum import SecureSums, Summed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from common.data.catalogue import Catalogue
    from common.models.partition import Arrays, SumQuantity
    from server.config import FederationConfig, SumsSection
    from server.exchange import Exchange
    from server.journal import Journal
    from server.membership import Membership
    from server.standing import Standing


def shared_items(catalogue: Catalogue, platforms: tuple[str, ...]) -> np.ndarray:
    """Catalogue rows that at least two of ``platforms`` list: int64, increasing.

    Of more than ``MAX_COUNTED_ITEMS`` those that most of them list, and of these the first.
    """
    listings = [catalogue.listing(name) for name in platforms]
    listed_by = np.bincount(np.concatenate(listings), minlength=catalogue.num_items)
    items = np.flatnonzero(listed_by >= 2)
    chosen: np.ndarray = items[most_counted(listed_by[items], MAX_COUNTED_ITEMS)]
    return chosen


class PrivateSums:
    """Asks platforms for both sums, unless they are on disk."""

    def __init__(
        self,
        config: FederationConfig,
        sums: SumsSection,
        catalogue: Catalogue,
        exchange: Exchange,
        secure: SecureSums,
        journal: Journal,
        members: Membership,
        standing: Standing,
    ) -> None:
        """Name the place; nothing is read or asked yet."""
        self._config = config
        self._noise = {
            "item-counts": sums.counts_noise_multiplier,
            "item-pairs": sums.pairs_noise_multiplier,
        }
        self._max_items = sums.max_items
        self._catalogue = catalogue
        self._exchange = exchange
        self._secure = secure
        self._journal = journal
        self._members = members
        self._standing = standing
        self._files = CollectedSums(config.run_folder, config.federation.run_id)

    def collect(self, nodes: Mapping[str, int]) -> CollectedSum:
        """The sum of pairs, and on the way to it that of counts.

        Args:
            nodes: address of each platform that takes part.

        Raises:
            RunFailed: if fewer platforms than the quorum answer, or there is nothing to pair.
            StateError: if what is on disk is damaged, or belongs to another run.
        """
        pairs = self._load("item-pairs")
        if pairs is not None:
            return pairs
        counts = self._load("item-counts") or self._ask("item-counts", self._shared(), nodes)
        chosen = most_counted(counts.total, self._max_items)
        noise_std = counts.noise_std * math.sqrt(len(counts.platforms))
        asked = {
            "items": counts.asked["items"][chosen],
            "weights": item_weights(counts.total[chosen], noise_std),
        }
        return self._ask("item-pairs", asked, nodes)

    def _shared(self) -> Arrays:
        listed = self._catalogue.listings
        names = tuple(name for name in self._config.federation.platforms if name in listed)
        items = shared_items(self._catalogue, names)
        if len(items) < 2:
            msg = (
                f"sums: {len(items)} items are listed by two platforms or more, at least 2 are "
                "needed. Check the catalogue (where platforms agree on one, their item ids and "
                "secrets), or leave [sums] out."
            )
            raise RunFailed(msg)
        return {"items": items}

    def _load(self, quantity: SumQuantity) -> CollectedSum | None:
        found = self._files.load(quantity)
        if found is None:
            return None
        try:
            check_asked(found.asked, quantity, self._catalogue.num_items)
            check_sum({"sum": found.total}, quantity, len(found.asked["items"]))
        except InvalidRelease as error:
            msg = f"{self._config.run_folder}: {quantity} belongs to another catalogue. {error}"
            raise StateError(msg) from error
        return found

    def _ask(self, quantity: SumQuantity, asked: Arrays, nodes: Mapping[str, int]) -> CollectedSum:
        nodes = self._standing.remaining(nodes)
        if self._config.is_summed:
            nodes = {name: nodes[name] for name in self._members.founders if name in nodes}
        requests = self._requests(quantity, nodes)
        self._journal.write(
            "sum-started",
            quantity=quantity,
            items=len(asked["items"]),
            platforms=list(nodes),
            **asked_mechanism(requests),
        )
        messages = {
            name: Message(encode(request, asked), nodes[name], SUM, group_id=quantity)
            for name, request in requests.items()
        }

        def report(name: str, outcome: str) -> None:
            self._journal.write("sum-reply", quantity=quantity, platform=name, outcome=outcome)

        with np.errstate(over="ignore"):
            summed = (
                self._secure.collect(
                    messages, requests, asked, size=_size(quantity, asked), report=report
                )
                if self._config.is_summed
                else self._add_up(quantity, asked, messages, requests, report)
            )
            total = summed.numbers.astype(np.float32)
        if not np.isfinite(total).all():
            msg = (
                f"{quantity}: the sum of the releases is so large that it overflows. Leave out the "
                "platform that sent it."
            )
            raise RunFailed(msg)
        # Before the file: a crash in between asks again, and platforms send the same bytes.
        self._journal.write("sum-closed", quantity=quantity, releases=len(summed.platforms))
        request = next(iter(requests.values()))
        collected = CollectedSum(
            asked=asked,
            total=total,
            platforms=summed.platforms,
            noise_std=request.noise_std,
            lattice=request.secagg.lattice if request.secagg else None,
        )
        self._files.save(quantity, collected)
        return collected

    def _requests(self, quantity: SumQuantity, names: Iterable[str]) -> dict[str, SumRequest]:
        multiplier, founders = self._noise[quantity], self._members.founders
        terms = (
            self._config.secagg.terms(
                founders,
                noise_std=multiplier,
                largest_sum=self._config.validation.population_slack
                * self._members.largest_population,
            )
            if self._config.is_summed
            else None
        )
        return {
            name: SumRequest(
                run_id=self._config.federation.run_id,
                platform=name,
                catalogue_digest=self._catalogue.digest,
                trust=self._config.mechanism.trust,
                num_platforms=len(founders),
                noise_multiplier=multiplier,
                secagg=terms,
                quantity=quantity,
            )
            for name in names
        }

    def _add_up(
        self,
        quantity: SumQuantity,
        asked: Arrays,
        messages: Mapping[str, Message],
        requests: Mapping[str, SumRequest],
        report: Callable[[str, str], None],
    ) -> Summed:
        """The sum of the releases that platforms send."""
        releases, platforms = StreamingSum(), []
        slack, num_asked = self._config.validation.population_slack, len(asked["items"])

        def check(name: str, arrays: Arrays) -> Arrays:
            num_users = slack * self._members.populations[name]
            return check_sum_release(
                arrays, requests[name], num_asked=num_asked, num_users=num_users
            )

        max_bytes = release_bytes({"sum": (_size(quantity, asked),)})
        for name, release, outcome in self._exchange.ask(
            messages, number=0, wanted="released", check=check, max_bytes=max_bytes
        ):
            if release is not None:
                note_release(self._journal, requests[name], release)
                releases.add(release)
                platforms.append(name)
            report(name, outcome)
        self._exchange.check_quorum(quantity, releases.count, len(self._members.founders))
        return Summed(platforms=tuple(sorted(platforms)), numbers=releases.total()["sum"])


def _size(quantity: SumQuantity, asked: Arrays) -> int:
    number = len(asked["items"])
    return number if quantity == "item-counts" else num_pairs(number)

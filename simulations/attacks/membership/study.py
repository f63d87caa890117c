"""Everything that is tried on one configuration: canaries of three units, and LiRA.

Each run has a folder of its own, which is deleted when its scores are known. What is released does
not depend on the platforms' own models, so nobody fits any, but for the platform whose
recommendations are looked at.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from common.privacy.plan import PLANS
from common.rng import derive_seed, derived_generator
from simulations.attacks.membership.audits import (
    CONFIDENCE,
    MAX_PAIRED,
    audit,
    score_releases,
    visible_shift,
)
from simulations.attacks.membership.canaries import (
    Canaries,
    choose_canaries,
    most_items_in_common,
    toss,
    with_test_set_aside,
)
from simulations.attacks.membership.claims import claim_for
from simulations.attacks.membership.effort import MOST_WITH_ROUNDS
from simulations.attacks.membership.gradients import score_handed_model
from simulations.attacks.membership.lira import likelihood_ratios
from simulations.attacks.membership.lower_bound import best_guesses
from simulations.attacks.membership.observed_run import observe
from simulations.attacks.membership.recommendations import score_recommendations, with_probes
from simulations.attacks.membership.result import AttackResult, Audit, Membership
from simulations.attacks.membership.roc import roc_of
from simulations.attacks.membership.scores import score_handed_pairs
from simulations.attacks.membership.shadows import draw_records, score_records, without_users
from simulations.simulate import plain_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.data.marketplace import Marketplace
    from simulations.attacks.membership.effort import Effort
    from simulations.attacks.membership.observed_run import ObservedRun
    from simulations.attacks.membership.result import Adversary, Unit
    from simulations.options import SimulationOptions

    Step = Callable[[str], None]

_NAMES = ("crossrec", "flwr", "numpy", "opacus", "scipy", "torch")
_FEWEST = 50


class Study:
    """Attacks one configuration, run by run."""

    def __init__(
        self,
        marketplace: Marketplace,
        options: SimulationOptions,
        folder: Path,
        *,
        effort: Effort,
        seed: int,
        confidence: float = CONFIDENCE,
        step: Step = lambda _: None,
    ) -> None:
        """Take the configuration; nothing runs yet.

        Args:
            marketplace: its data.
            options: of the attacked run.
            folder: for the runs; what they leave there is deleted.
            effort: how much is tried.
            seed: of coins and noise.
            confidence: of each lower bound.
            step: is told what comes next, before each run and at the end.
        """
        self._marketplace = with_test_set_aside(marketplace, options.seed)
        self._options, self._folder, self._effort = options, folder, effort
        self._seed, self._confidence, self._step = seed, confidence, step
        self._names = most_items_in_common(self._marketplace)
        self._has_pairs = PLANS[options.plan].pairs > 0
        self._has_rounds = options.num_rounds > 0
        self._num_begun = 0

    @property
    def num_steps(self) -> int:
        """Runs that it takes."""
        return 1 + self._has_pairs + (self._effort.probes > 0) + self._num_shadows

    @property
    def _num_shadows(self) -> int:
        return self._effort.runs_with_rounds if self._has_rounds else self._effort.runs

    def result(self, command: str) -> AttackResult:
        """Try everything.

        Args:
            command: that repeats it.

        Raises:
            ConfigError: if the data are too small.
            RunFailed: if a run could not go on.
        """
        began = time.monotonic()
        audits = [*self._users_and_interactions(), *self._platforms(), *self._recommendations()]
        memberships = self._memberships()
        self._clear()
        self._step("done")
        return AttackResult(
            command=command,
            configuration=plain_values(asdict(self._options)),
            mode=self._effort.mode,
            seed=self._seed,
            epsilon=audits[0].epsilon_accounted,
            delta=self._options.delta,
            audits=tuple(audits),
            memberships=memberships,
            versions={
                "python": sys.version.split()[0],
                **{name: version(name) for name in _NAMES},
            },
            wall_seconds=time.monotonic() - began,
        )

    def _users_and_interactions(self) -> list[Audit]:
        groups = [self._choose("user", self._names[0], self._effort.users)]
        if len(self._names) > 1:
            found = self._choose("interaction", self._names[1], self._effort.interactions)
            groups.append(found)
        run = self._observe("canary users and interactions", groups)
        audits = []
        for group in groups:
            what = "users with two items each" if group.unit == "user" else "users' second items"
            place = f"{group.number} {what} at {group.platform}"
            scores = score_releases(group, run, seed=self._seed)
            audits.append(
                self._audit(group, run, "releases", scores, f"{place}; {self._seen_releases}")
            )
            scores, how = self._score_model(group, run)
            audits.append(self._audit(group, run, "model", scores, f"{place}; {how}"))
        return audits

    def _platforms(self) -> list[Audit]:
        """Platforms that are tiny, and always take part."""
        if not self._has_pairs:
            return []
        group = self._choose("platform", self._names[0], self._effort.platforms)
        run = self._observe("canary platforms", [group])
        scores, how = self._score_model(group, run)
        detail = (
            f"{group.number} platforms of {group.num_users} users, all of whom have the same two "
            f"items or none that is asked for; {how}"
        )
        return [self._audit(group, run, "model", scores, detail)]

    def _recommendations(self) -> list[Audit]:
        if not self._effort.probes or len(self._names) < 2:
            return []
        sizes = {table.name: table.num_users for table in self._marketplace.platforms}
        target, served_by = self._names[0], min(self._names[1:], key=lambda name: sizes[name])
        group = self._choose("user", target, self._effort.probes, listed_by=served_by)
        run = self._observe("probes", [group], served_by=served_by)
        platform = next(p for p in run.federation.platforms if p.name == served_by)
        scores, gate = score_recommendations(group, platform.config_file)
        detail = (
            f"{group.number} users with two items each at {target}; by the place that {served_by} "
            "gives the second item for a user who has the first"
        )
        if gate != "joined":
            detail += (
                f". {served_by} serves what it has alone, which does not depend on the federation "
                "at all: nothing can be learned here"
            )
        return [self._audit(group, run, "recommendations", scores, detail)]

    def _memberships(self) -> tuple[Membership, ...]:
        """LiRA: real users and canary users of one platform, each with a coin in every run."""
        if not self._num_shadows:
            return ()
        target = self._names[0]
        rng = derived_generator(self._seed, "records", target)
        records = draw_records(self._marketplace, target, self._effort.records, rng)
        canaries = self._choose("user", target, self._effort.records)
        scores: dict[tuple[str, Adversary], list[np.ndarray]] = {}
        coins: dict[str, list[np.ndarray]] = {"users": [], "canary users": []}
        for number in range(self._num_shadows):
            canaries = toss(canaries, rng)
            is_in = rng.random(len(records)) < 0.5
            gone = [user for user, stays in zip(records, is_in, strict=True) if not stays]
            coins["users"].append(is_in)
            coins["canary users"].append(canaries.is_in)
            run = self._observe(
                f"LiRA {number + 1} of {self._num_shadows}",
                [canaries],
                marketplace=without_users(self._marketplace, target, gone),
            )
            found = {
                ("canary users", "releases"): score_releases(canaries, run, seed=self._seed),
                ("canary users", "model"): self._score_model(canaries, run)[0],
            }
            if self._has_pairs:
                whole = score_records(self._marketplace, target, records, run.seen)
                found["users", "releases"] = whole
            for key, values in found.items():
                scores.setdefault(key, []).append(values)  # type: ignore[arg-type]
        return tuple(
            self._membership(target, adversary, np.stack(found), np.stack(coins[target]))
            for (target, adversary), found in scores.items()
        )

    def _membership(
        self, target: str, adversary: Adversary, scores: np.ndarray, is_in: np.ndarray
    ) -> Membership:
        ratios = likelihood_ratios(scores, is_in)
        return Membership(
            target=target,
            adversary=adversary,
            num_runs=len(scores),
            num_records=scores.shape[1],
            roc=roc_of(ratios.ravel(), is_in.ravel()),
        )

    def _choose(
        self, unit: Unit, platform: str, number: int, *, listed_by: str | None = None
    ) -> Canaries:
        at_most = min(number, MOST_WITH_ROUNDS) if self._has_rounds else number
        return choose_canaries(
            self._marketplace,
            unit,
            platform,
            at_most,
            max_items=MAX_PAIRED,
            rng=derived_generator(self._seed, f"{unit} canaries", platform, at_most),
            at_least=min(at_most, _FEWEST),
            listed_by=listed_by,
        )

    def _observe(
        self,
        what: str,
        groups: list[Canaries],
        *,
        marketplace: Marketplace | None = None,
        served_by: str | None = None,
    ) -> ObservedRun:
        """One run, in a folder of its own."""
        self._step(what)
        self._clear()
        self._num_begun += 1
        data = marketplace or self._marketplace
        if served_by is not None:
            data = with_probes(data, served_by, groups[0])
        return observe(
            data,
            groups,
            self._options,
            self._run_folder,
            seed=derive_seed(self._seed, "run", self._num_begun),
            adapting=() if served_by is None else (served_by,),
        )

    @property
    def _run_folder(self) -> Path:
        return self._folder / "run"

    def _clear(self) -> None:
        shutil.rmtree(self._run_folder, ignore_errors=True)

    @property
    def _seen_releases(self) -> str:
        if self._options.trust.startswith("secagg"):
            return (
                "by likelihood ratio of every sum, of which the parts of "
                f"{self._options.max_colluding} other platform(s) are known"
            )
        return "by likelihood ratio of every release of their platform"

    def _score_model(self, group: Canaries, run: ObservedRun) -> tuple[np.ndarray, str]:
        if run.handed.request.num_sums:
            return (
                score_handed_pairs(group, run.handed, run.known),
                "by likelihood ratio of the sum of pairs that all platforms get",
            )
        listing = run.known.catalogue.listing(group.platform)
        scores = score_handed_model(group, run.handed, listing)
        return scores, "by how well the last parameters fit them"

    def _audit(
        self, group: Canaries, run: ObservedRun, adversary: Adversary, scores: np.ndarray, how: str
    ) -> Audit:
        num_platforms = len(run.known.platforms)
        own = group.platform or next(iter(run.spends.keys() - set(self._names)))
        claim = claim_for(
            group.unit,
            adversary,
            run.spends[own],
            self._options,
            num_platforms=num_platforms,
            num_users=group.num_users,
        )
        shift = visible_shift(group, self._options, adversary, num_platforms)
        return audit(
            group,
            scores,
            claim,
            adversary=adversary,
            num_guesses=best_guesses(
                group.number, shift, delta=claim.delta, confidence=self._confidence
            ),
            detail=how,
            confidence=self._confidence,
        )

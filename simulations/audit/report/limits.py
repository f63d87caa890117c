"""Whom to trust, what is kept, and what nobody can know: further points of a report. Pure.

Sentences about the code say what the code does, and name the file that shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from simulations.audit.report.statement import (
    NOT_KNOWN,
    CannotKnowPoint,
    PostProcessingPoint,
    RandomnessPoint,
    RetentionPoint,
    TrustPoint,
    TuningPoint,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simulations.audit.evidence import Evidence
    from simulations.audit.report.points import Audited
    from simulations.result import RunResult

_TRUST: Mapping[str, str] = {
    "local": "local: each platform adds all of the noise itself. Users are protected from the "
    "coordinator, the other platforms and everyone they share with; each may see every release.",
    "secagg": "secagg: the coordinator sees sums over platforms and no single release; each "
    "platform adds a share of the noise. Users are protected as long as no more platforms than "
    "agreed work together with the coordinator. The number 'if secure aggregation broke' is what "
    "remains if they do.",
    "secagg-simulated": "secagg-simulated: the sums and the noise of secure aggregation, added up "
    "in the clear. Only 'if secure aggregation broke' says what the coordinator could learn.",
    "none": "none: no noise was added. Nobody is protected from anybody.",
}


def trust_point(platforms: Sequence[Audited]) -> TrustPoint:
    """Who has to be honest."""
    modes = tuple(sorted({p.part.trust for p in platforms if p.part.trust}))
    text = [_TRUST.get(mode, mode) for mode in modes]
    missing = [p.name for p in platforms if p.part.trust is None]
    if missing:
        text.append(
            f"{NOT_KNOWN}the trust mode of {', '.join(missing)}: platform.toml has it, and the "
            "ledgers of this version."
        )
    text.append(
        "A user has to trust her own platform: it has her data, runs the code that adds the noise, "
        "and keeps the ledger. The coordinator is not trusted with raw data; it may ask for "
        "anything, and the platform's own configuration and ledger decide."
    )
    return TrustPoint(text=tuple(text), modes=modes)


def randomness_point(platforms: Sequence[Audited]) -> RandomnessPoint:
    """Where noise comes from, and what computers make of it."""
    origin: dict[bool | None, Literal["operating system", "seed", "not known"]] = {
        True: "seed",
        False: "operating system",
        None: "not known",
    }
    sources = {p.name: origin[p.part.is_simulation] for p in platforms}
    text = []
    for source, sentence in (
        (
            "seed",
            (
                "the noise follows from a seed, because this is a simulation. Whoever knows the "
                "seed can take the noise off: epsilon is what a deployment with the same settings "
                "would spend, and these releases protect nobody."
            ),
        ),
        (
            "operating system",
            (
                "if it ran the released software, the noise of each release comes from a fresh "
                "256-bit key of the operating system that is never stored; platform.toml asks for "
                "no seed. No record can tell which software ran."
            ),
        ),
        (
            "not known",
            (
                f"{NOT_KNOWN}whether the noise came from a seed. A section [simulation] in "
                "platform.toml would say so."
            ),
        ),
    ):
        names = [name for name, found in sources.items() if found == source]
        if names:
            text.append(f"{', '.join(names)}: {sentence}")
    text += [
        (
            "In the released software the generator is the key stream of AES-256 in counter mode; "
            "normal draws by Box and Muller from 63-bit uniforms, which end at 9.4 standard "
            "deviations. Coins of sampling and dropout come from the same source; negatives from "
            "PCG64 with a 128-bit seed of it (common/privacy/randomness.py)."
        ),
        (
            "Floating point: sums and noise are float64, and the result is rounded to a public "
            "grid, so that its last bits tell nothing (Mironov 2012). With secure aggregation it "
            "is rounded to whole numbers. The noise is computed and not exact: its probabilities "
            "are off by a relative error near 2^-36, which is not priced (common/privacy/noise.py)."
        ),
    ]
    return RandomnessPoint(text=tuple(text), sources=sources)


def tuning_point(platforms: Sequence[Audited], results: Sequence[RunResult]) -> TuningPoint:
    """What was chosen, and by looking at what."""
    derived = any(result.data.catalogue_derived for result in results) if results else None
    listing = (
        f"{NOT_KNOWN}how the catalogue was made. Which items a platform lists is a public input "
        "and must not be read off who bought what; ask where the assortment comes from."
    )
    if derived is not None:
        listing = (
            "Which items a platform lists was read off the interactions, and epsilon does not "
            "cover that. A deployment needs a public assortment instead."
            if derived
            else "Which items a platform lists was a public input, not read off the interactions."
        )
    num_runs = len(
        {
            charge.spend.request_id.partition("/")[0]
            for p in platforms
            for charge in p.believed.charges
        }
    )
    text = (
        (
            "The coordinator cannot tune on private data through this software: no metric reaches "
            f"it. The ledgers hold {num_runs} run{'' if num_runs == 1 else 's'}; each that tried "
            "other settings on the platforms is charged in full."
        ),
        (
            "A platform chooses its own models, their settings and whether to serve a federated "
            "part (its gate) on its own validation users, without noise. None of these choices is "
            "released."
        ),
        (
            "Defaults of the software (clipping norm, learning rates, shares of the budget) were "
            "chosen on public data sets of purchases and on synthetic ones."
        ),
        (
            f"{NOT_KNOWN}whether epsilon, noise or other settings of these runs were chosen by "
            "looking at the platforms' data elsewhere. Ask who set them, and by what."
        ),
        listing,
        "No public data was trained on: starting values are drawn from a seed.",
    )
    return TuningPoint(text=text, catalogue_derived=derived)


def post_processing_point() -> PostProcessingPoint:
    """What is made of releases, and of raw data beside them."""
    text = (
        (
            "What the coordinator and others make of releases (means, steps of an optimiser, "
            "models) costs nothing more: it is computed from releases and public numbers alone."
        ),
        (
            "User vectors are fitted on the platform to each user's own data and to shared "
            "parameters, and never leave. A recommendation to a user from her own vector and from "
            "releases may depend on her own data: joint differential privacy, the billboard lemma "
            "(Kearns et al. 2014)."
        ),
        (
            "What a platform serves is more than that: its own models are fitted to the raw data "
            "of all its users, without noise. What one user of a platform is shown can therefore "
            "tell of others of the same platform; this guarantee does not cover that. It covers "
            "what other platforms' users, and everybody else outside, can learn."
        ),
    )
    return PostProcessingPoint(text=text)


def retention_point(platforms: Sequence[Audited]) -> RetentionPoint:
    """What is kept, and what becomes of a user who leaves."""
    keep = {p.name: p.found.config.state.keep_releases for p in platforms if p.found.config}
    text = [
        (
            "The ledger is kept for ever: entries are only appended. Releases are kept so that a "
            "repeated request gets the same bytes: the latest rounds, and the sums of the latest "
            "run; private user vectors of the same rounds with them (client/state.py)."
        ),
        "Rounds kept: "
        + (
            ", ".join(f"{name} {number}" for name, number in keep.items()) + "."
            if keep
            else f"{NOT_KNOWN}how many; platform.toml has keep_releases."
        ),
        (
            "The coordinator keeps its journal, the sums and its latest checkpoint; nothing "
            "deletes them. Whoever received a release may keep it for ever, and privacy does not "
            "depend on deletion."
        ),
        (
            "A user who is deleted from a platform's data is in no later release, and the "
            "platform's own models forget her when they are fitted again. What was released with "
            "her stays released: the guarantee is what bounds it. Her vector goes when newer "
            "rounds take the place of those kept; whether a deletion was asked for and done is not "
            "in these records."
        ),
    ]
    kept = {p.name: len(p.found.releases) for p in platforms}
    return RetentionPoint(text=tuple(text), releases_kept=kept)


def cannot_know_point(evidence: Evidence, platforms: Sequence[Audited]) -> CannotKnowPoint:
    """The limits of this report."""
    text = [
        (
            "Whether a platform ran this code. The ledger is written by the software that it "
            "audits: a platform that changed it can write what it likes."
        ),
        (
            "Whether the noise was really added, and drawn from the source it should be. A release "
            "looks the same to the eye; only the software, or an attack on a simulation of it, "
            "tells."
        ),
        "Whether a platform gave the software all of its users' data once, or some of it outside.",
        (
            "Whether the owner put an older copy of all his files in their place, the head file "
            "included. Compare with an earlier audit (--since), and with the coordinator's journal."
        ),
        (
            "Who saw releases, and what they know from elsewhere. The guarantee holds whatever "
            "that is; it does not say that nothing can be learned about people in general."
        ),
        "What a person loses by what the platform's own data, logs and shop windows tell.",
        "Which accounts at different platforms belong to one person.",
        "How long platforms took to answer, and what that told.",
    ]
    if not evidence.servers:
        text.append(
            "Whether what left is what the ledgers record: no journal of the coordinator was given."
        )
    if any(p.found.config is None for p in platforms):
        text.append("What a platform's configuration says, where no platform.toml was given.")
    if any(p.part.trust == "secagg" for p in platforms):
        text.append(
            "How many platforms worked together with the coordinator, and whether the keys that "
            "platforms trust are those of the others."
        )
    if not evidence.results:
        text.append("How good recommendations are, for anybody.")
    return CannotKnowPoint(text=tuple(text))

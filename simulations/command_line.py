"""What the commands of simulations have in common: choices, options and their reading."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from common.models.ncf import NcfConfig
    from common.privacy.mechanisms import TrustMode


class Trust(StrEnum):
    """Choices of ``--trust``."""

    local = "local"
    secagg = "secagg"
    secagg_simulated = "secagg-simulated"
    none = "none"


class Model(StrEnum):
    """Choices of ``--model``."""

    gmf = "gmf"
    mlp = "mlp"
    neumf = "neumf"


class Loss(StrEnum):
    """Choices of ``--loss``."""

    softmax = "softmax"
    sampled_softmax = "sampled-softmax"
    bce = "bce"


class Strategy(StrEnum):
    """Choices of ``--strategy``."""

    fedadam = "fedadam"
    fedavg = "fedavg"


class Plan(StrEnum):
    """Choices of ``--plan``."""

    pairs = "pairs"
    ncf = "ncf"
    both = "both"


DATA, PRIVACY, TRAINING, RUN = "Data", "Privacy", "Training", "Run"
"""Panels of the help."""

DataOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder with one file or sub-folder per platform. "
        "Without it, a built-in synthetic marketplace.",
        rich_help_panel=DATA,
    ),
]
UserColumnOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Column of user ids.", rich_help_panel=DATA)
]
ItemColumnOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Column of item ids.", rich_help_panel=DATA)
]
RatingColumnOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Column of ratings.", rich_help_panel=DATA)
]
TimeColumnOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Column of times.", rich_help_panel=DATA)
]
CatalogueOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Public catalogue: item_id and platform. Without it, derived from the data.",
        rich_help_panel=DATA,
    ),
]
CandidatesOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="'all' ranks the whole catalogue, a number ranks among that many sampled items.",
        rich_help_panel=DATA,
    ),
]
DeltaOption: TypeAlias = Annotated[
    float, typer.Option(help="Delta of the guarantee.", rich_help_panel=PRIVACY)
]
PlanOption: TypeAlias = Annotated[
    Plan,
    typer.Option(
        help="What the budget is spent on: pairs of items, one release; ncf, rounds of neural "
        "collaborative filtering; or both.",
        rich_help_panel=PRIVACY,
    ),
]
ClippingNormOption: TypeAlias = Annotated[
    float, typer.Option(help="Bound on one user's gradient.", rich_help_panel=PRIVACY)
]
SamplingRateOption: TypeAlias = Annotated[
    float,
    typer.Option(help="Poisson sampling rate of users per step.", rich_help_panel=PRIVACY),
]
ModelOption: TypeAlias = Annotated[
    Model, typer.Option(help="Which NCF model.", rich_help_panel=TRAINING)
]
LossOption: TypeAlias = Annotated[
    Loss | None,
    typer.Option(
        help="Training loss. \\[default: softmax for gmf, else sampled-softmax]",
        rich_help_panel=TRAINING,
    ),
]
DimOption: TypeAlias = Annotated[
    int, typer.Option(help="Length of item vectors.", rich_help_panel=TRAINING)
]
HiddenOption: TypeAlias = Annotated[
    str, typer.Option(help="Widths of the tower, for mlp, neumf.", rich_help_panel=TRAINING)
]
NegativesOption: TypeAlias = Annotated[
    int,
    typer.Option(help="Sampled items, for sampled-softmax, bce.", rich_help_panel=TRAINING),
]
RoundsOption: TypeAlias = Annotated[
    int,
    typer.Option(help="Rounds of private training, for plans ncf, both.", rich_help_panel=TRAINING),
]
LocalStepsOption: TypeAlias = Annotated[
    int, typer.Option(help="Noisy steps per round.", rich_help_panel=TRAINING)
]
StrategyOption: TypeAlias = Annotated[
    Strategy, typer.Option(help="How the server steps.", rich_help_panel=TRAINING)
]
ServerLearningRateOption: TypeAlias = Annotated[
    float,
    typer.Option(
        help="First step length of the server; FedAdam's falls to 0 over the rounds.",
        rich_help_panel=TRAINING,
    ),
]
EpochsOption: TypeAlias = Annotated[
    int,
    typer.Option(
        help="Most epochs of a platform's own, private fitting.", rich_help_panel=TRAINING
    ),
]
OverwriteOption: TypeAlias = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in --out.", rich_help_panel=RUN)
]


def given_options(context: typer.Context) -> set[str]:
    """Names of the options that stand on the command line."""
    return {
        name.replace("_", "-")
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


def trust_mode(trust: Trust) -> TrustMode:
    """The mode that a choice stands for."""
    return trust.value


def num_candidates(text: str) -> int | None:
    """Read ``--candidates``: a number, or None for all.

    Raises:
        ConfigError: if it is something else.
    """
    from common.errors import ConfigError

    if text == "all":
        return None
    if not text.isdecimal():
        msg = f"--candidates: found {text!r}, expected 'all' or a number such as 100."
        raise ConfigError(msg)
    return int(text)


def model_config(
    model: Model, loss: Loss | None, *, dim: int, hidden: str, negatives: int
) -> NcfConfig:
    """The shared model that the options name.

    Raises:
        ConfigError: if they contradict each other.
    """
    from common.models.ncf import NcfConfig

    return NcfConfig(
        kind=model.value,
        dim=dim,
        hidden=_widths(hidden),
        loss=(loss or (Loss.softmax if model is Model.gmf else Loss.sampled_softmax)).value,
        num_negatives=negatives,
    )


def _widths(text: str) -> tuple[int, ...]:
    from common.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        msg = f"--hidden: found {text!r}, expected widths such as 32,16."
        raise ConfigError(msg)
    return tuple(int(part) for part in parts)

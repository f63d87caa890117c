from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.config import dump_config, load_config
from common.errors import ConfigError
from server.config import (
    CatalogueSection,
    FederationConfig,
    FederationSection,
    MechanismSection,
    SecaggSection,
    SumsSection,
    TrainingSection,
)

if TYPE_CHECKING:
    from common.privacy.mechanisms import TrustMode


def federation(**changes: Any) -> FederationSection:  # noqa: ANN401 - any field
    fields: dict[str, Any] = {"run_id": "spring", "rounds": 3, "platforms": ("a", "b")}
    return FederationSection(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rounds": -1}, "rounds"),
        ({"platforms": ()}, "platforms"),
        ({"platforms": ("a", "a")}, "platforms"),
        ({"quorum": 0}, "quorum"),
        ({"quorum": 3}, "quorum"),
        ({"platforms": ("a",)}, "quorum"),  # the default quorum of 2 would never be met
        ({"run_id": ""}, "run_id"),
        ({"run_id": "spring/2"}, "run_id"),  # request ids are split at slashes
        ({"round_timeout_seconds": 0.0}, "round_timeout_seconds"),
        ({"round_timeout_seconds": math.nan}, "round_timeout_seconds"),
        ({"join_timeout_seconds": -1.0}, "join_timeout_seconds"),
    ],
)
def test_a_run_that_could_not_take_place_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        federation(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.5}, "sampling_rate"),
        ({"local_steps": 0}, "steps"),
        ({"clipping_norm": 0.0}, "clipping_norm"),
        ({"clipping_norm": math.inf}, "clipping_norm"),
    ],
)
def test_a_mechanism_that_no_accountant_knows_is_refused(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        MechanismSection(**{"noise_multiplier": 1.0, **changes})
    if "noise_multiplier" not in changes:
        with pytest.raises(ConfigError, match=named):
            MechanismSection(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"local_learning_rate": 0.0}, "local_learning_rate"),
        ({"server_learning_rate": math.nan}, "server_learning_rate"),
        ({"user_steps": 0}, "user_steps"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"momentum": 1.0}, "momentum"),  # FedAdam's bias correction would divide by zero
        ({"momentum": -0.1}, "momentum"),
    ],
)
def test_a_step_that_leads_nowhere_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainingSection(**changes)


SUMS = SumsSection(counts_noise_multiplier=30.0, pairs_noise_multiplier=10.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"counts_noise_multiplier": -1.0}, "noise_multiplier"),
        ({"pairs_noise_multiplier": math.nan}, "noise_multiplier"),
        ({"pairs_noise_multiplier": math.inf}, "noise_multiplier"),
        ({"max_items": 1}, "max_items"),
        ({"max_items": 10_001}, "max_items"),
    ],
)
def test_sums_that_no_platform_would_release_are_refused(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(SUMS, **changes)


def whole(tmp_path: Path, sums: SumsSection | None, **changes: Any) -> FederationConfig:  # noqa: ANN401
    rounds, rate = changes.get("rounds", 3), changes.get("sampling_rate", 1.0)
    return FederationConfig(
        federation=federation(rounds=rounds),
        catalogue=CatalogueSection(file=tmp_path / "catalogue.csv"),
        mechanism=MechanismSection(noise_multiplier=0.7, sampling_rate=rate),
        sums=sums,
    )


def test_a_run_has_rounds_or_sums(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds = 0 .*\[sums\]"):
        whole(tmp_path, None, rounds=0)
    for sums, rounds in ((SUMS, 0), (SUMS, 1), (None, 1)):
        config = whole(tmp_path, sums, rounds=rounds)
        path = tmp_path / "federation.toml"
        path.write_text(dump_config(config), encoding="utf-8")
        loaded = load_config(path, FederationConfig)
        assert (loaded.sums, loaded.federation.rounds) == (sums, rounds)


def test_noise_of_rounds_is_said_where_there_are_rounds(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    text = '[federation]\nrun_id = "x"\nrounds = {}\nplatforms = ["a", "b"]\n'
    text += '[catalogue]\nfile = "c.csv"\n'
    text += "[sums]\ncounts_noise_multiplier = 30.0\npairs_noise_multiplier = 10.0\n"
    path.write_text(text.format(0), encoding="utf-8")
    assert load_config(path, FederationConfig).mechanism == MechanismSection()
    for mechanism in ("", "[mechanism]\nclipping_norm = 0.5\n"):
        path.write_text(text.format(1) + mechanism, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"mechanism\.noise_multiplier is missing"):
            load_config(path, FederationConfig)


def test_sampled_rounds_after_sums_are_refused_before_anybody_pays_for_the_sums(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="sampling_rate"):
        whole(tmp_path, SUMS, sampling_rate=0.5)
    whole(tmp_path, SUMS, sampling_rate=0.5, rounds=0)
    whole(tmp_path, None, sampling_rate=0.5)


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    config = FederationConfig(
        federation=federation(round_timeout_seconds=math.inf),
        catalogue=CatalogueSection(file=tmp_path / "catalogue.csv"),
        mechanism=MechanismSection(noise_multiplier=0.7, sampling_rate=0.1, local_steps=2),
    )
    path = tmp_path / "federation.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    loaded = load_config(path, FederationConfig)
    assert loaded.mechanism == config.mechanism
    assert loaded.federation == config.federation
    assert loaded.model == config.model


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "either file or agree = true, found neither"),
        ({"file": Path("a.csv"), "agree": True}, "either file or agree = true, found both"),
        ({"agree": True, "max_items": 0}, "max_items"),
        ({"agree": True, "max_items": 10**9}, "max_items"),
    ],
)
def test_there_is_one_source_of_the_catalogue(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        CatalogueSection(**changes)


def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(
        '[federation]\nrun_id = "x"\nrounds = 1\nplatforms = ["a", "b"]\n'
        '[catalogue]\nfile = "c.csv"\n[mechanism]\nnoise_multiplier = 1.0\ntrust = "secret"\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"federation\.toml: \[mechanism\] trust.*local"):
        load_config(path, FederationConfig)


def test_a_round_is_priced_as_it_is_asked_for() -> None:
    mechanism = MechanismSection(noise_multiplier=0.7, sampling_rate=0.1, local_steps=2).per_round()
    priced = (mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps, mechanism.unit)
    assert priced == (0.7, 0.1, 2, "user")


def summed(number: int, **secagg: Any) -> FederationConfig:  # noqa: ANN401 - any field
    names = tuple(f"p{k}" for k in range(number))
    return FederationConfig(
        federation=federation(platforms=names),
        catalogue=CatalogueSection(agree=True),
        mechanism=MechanismSection(noise_multiplier=0.7, trust="secagg"),
        secagg=SecaggSection(**secagg),
    )


@pytest.mark.parametrize(
    ("number", "secagg", "named"),
    [
        (5, {"max_dropped": 2}, "of 5 platforms 2 may drop out and 1 collude"),
        (5, {"max_dropped": 1, "max_colluding": 3}, "of 5 platforms 1 may drop out and 3 collude"),
        (2, {"max_dropped": 1}, "of 2 platforms 1 may drop out"),
        (10, {"max_dropped": 5}, "of 10 platforms 5 may drop out"),
        (5, {"neighbours": 0}, "neighbours: found 0"),
        (5, {"stage_timeout_seconds": 0.0}, "stage_timeout_seconds"),
        (5, {"stage_timeout_seconds": math.nan}, "stage_timeout_seconds"),
    ],
)
def test_a_secure_sum_that_could_not_be_opened_is_refused(
    number: int, secagg: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        summed(number, **secagg)


def test_as_many_may_drop_out_as_leave_one_list_of_survivors() -> None:
    for number, max_dropped in ((2, 0), (3, 0), (4, 1), (10, 4), (100, 49)):
        terms = summed(number, max_dropped=max_dropped).secagg.terms(
            tuple(f"p{k:03}" for k in range(number)), noise_std=1.0, largest_sum=1e4
        )
        assert terms.min_summed == number - max_dropped
        assert terms.is_complete


def test_a_round_of_a_secure_sum_has_one_step_and_shows_no_single_release() -> None:
    config = summed(5)
    modes: tuple[TrustMode, ...] = ("secagg", "secagg-simulated")
    for mechanism in modes:
        steps = MechanismSection(noise_multiplier=0.7, local_steps=2, trust=mechanism)
        with pytest.raises(ConfigError, match=r"local_steps = 2: .* one noisy step"):
            replace(config, mechanism=steps)
        with pytest.raises(ConfigError, match="needs each release by itself"):
            replace(config, training=TrainingSection(aggregation="median"))

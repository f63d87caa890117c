from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from client.config import (
    AdaptationSection,
    CatalogueSection,
    PlatformConfig,
    PlatformSection,
    PrivacySection,
    SecaggSection,
    SimulationSection,
    StateSection,
)
from common.config import dump_config, load_config
from common.data.sql import SqlQuery
from common.errors import ConfigError
from common.privacy.account import Budget
from tests.unit.client.homes import move_in

if TYPE_CHECKING:
    from pathlib import Path

PLATFORM_TOML = """
[platform]
name = "north"
population = 1000
[data]
source = "purchases.csv"
[catalogue]
file = "catalogue.csv"
[privacy]
epsilon = 3.0
"""


def load(folder: Path, text: str) -> PlatformConfig:
    path = folder / "platform.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, PlatformConfig)


def test_the_smallest_file_is_local_trust_per_user_and_no_simulation(tmp_path: Path) -> None:
    config = load(tmp_path, PLATFORM_TOML)
    assert (config.privacy.trust, config.privacy.unit) == ("local", "user")
    assert config.simulation is None
    assert config.privacy.budget().epsilon == 3.0
    assert config.data.source == tmp_path / "purchases.csv"
    assert config.state.folder.name == "state"


FROM_DATABASE = PLATFORM_TOML.replace(
    'source = "purchases.csv"',
    'source = "sqlite:////var/lib/${SHOP}.db?timeout=5"\nquery = "SELECT * FROM orders"',
)


def test_a_source_with_an_address_is_a_query_and_its_secrets_stay_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP", "hunter2")
    config = load(tmp_path, FROM_DATABASE)
    assert isinstance(config.data.interactions(), SqlQuery)
    assert load(tmp_path, dump_config(config)).data == config.data
    assert "hunter2" not in dump_config(config) + repr(config)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (FROM_DATABASE.replace("query = ", "# "), r"\[data\]: query: is blank"),
        (FROM_DATABASE.replace("sqlite:////var", "sqlite:///var"), r"\[data\]: .* absolute path"),
        (FROM_DATABASE.replace("sqlite:", "postgres:"), r"\[data\]: .* no kind of database"),
        (FROM_DATABASE.replace("sqlite:////", ""), r"\[data\]: query: is for databases"),
        (PLATFORM_TOML.replace('"purchases.csv"', "3"), "a path or an address"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_at_once(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, text)


@pytest.mark.parametrize("trust", ["none", "secagg-simulated"])
def test_a_mode_without_its_guarantee_needs_a_simulation_section(
    tmp_path: Path, trust: str
) -> None:
    epsilon = "inf" if trust == "none" else "3.0"
    text = PLATFORM_TOML.replace("epsilon = 3.0", f'epsilon = {epsilon}\ntrust = "{trust}"')
    with pytest.raises(ConfigError, match="for simulations only"):
        load(tmp_path, text)
    assert load(tmp_path, text + "[simulation]\nseed = 1\n").privacy.trust == trust


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": 3.0, "trust": "none"}, "epsilon = inf"),
        ({"epsilon": 3.0, "delta": 0.0}, "delta"),
        ({"epsilon": 3.0, "delta": 1.0}, "delta"),
        ({"epsilon": 3.0, "delta": math.nan}, "delta"),
        ({"epsilon": 3.0, "max_clipping_norm": 0.0}, "max_clipping_norm"),
        ({"epsilon": 3.0, "max_clipping_norm": math.nan}, "max_clipping_norm"),
        ({"epsilon": 3.0, "min_noise_multiplier": math.nan}, "min_noise_multiplier"),
        ({"epsilon": 3.0, "min_noise_multiplier": -1.0}, "min_noise_multiplier"),
        ({"epsilon": 3.0, "max_rounds": 0}, "max_rounds"),
        ({"epsilon": 3.0, "period_days": 0}, "period_days"),
        ({"epsilon": 3.0, "period_days": -1}, "period_days"),
        ({"epsilon": 3.0, "period_days": 10**7}, "period_days"),
    ],
)
def test_a_budget_that_could_not_bind_or_be_kept_is_refused(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        PrivacySection(**changes)


def test_a_budget_is_for_life_unless_the_file_says_for_how_long(tmp_path: Path) -> None:
    life = load(tmp_path, PLATFORM_TOML)
    month = load(tmp_path, PLATFORM_TOML + "period_days = 30\nmax_rounds = 5\n")
    assert life.privacy.budget() == Budget(epsilon=3.0, delta=1e-5, unit="user", period_days=None)
    assert month.privacy.budget() == Budget(epsilon=3.0, delta=1e-5, unit="user", period_days=30)
    assert (life.privacy.max_rounds, month.privacy.max_rounds) == (1000, 5)


@pytest.mark.parametrize("line", ["period_days = 1.5", "period_days = true", "max_rounds = inf"])
def test_days_and_rounds_are_whole_numbers(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=line.split(maxsplit=1)[0]):
        load(tmp_path, f"{PLATFORM_TOML}{line}\n")


def test_a_deployment_has_a_budget_that_binds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon = inf never binds"):
        load(tmp_path, PLATFORM_TOML.replace("3.0", "inf"))


@pytest.mark.parametrize(("delta", "is_allowed"), [("1e-4", True), ("2e-4", False)])
def test_delta_stays_well_below_one_over_the_users(
    tmp_path: Path, delta: str, *, is_allowed: bool
) -> None:
    text = PLATFORM_TOML.replace("epsilon = 3.0", f"epsilon = 3.0\ndelta = {delta}")
    if is_allowed:
        load(tmp_path, text)
    else:
        with pytest.raises(ConfigError, match=r"privacy\.delta.*use at most 0\.0001"):
            load(tmp_path, text)


def test_without_privacy_means_without_limit() -> None:
    assert PrivacySection(epsilon=math.inf, trust="none").budget().epsilon == math.inf


@pytest.mark.parametrize("population", [0, -5])
def test_a_population_that_nobody_could_divide_by_is_refused(population: int) -> None:
    with pytest.raises(ConfigError, match="population"):
        PlatformSection(name="north", population=population)


def test_a_platform_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="name"):
        PlatformSection(name="", population=10)


@pytest.mark.parametrize("keep", [0, -1])
def test_the_last_release_must_be_kept_for_a_repeated_request(keep: int) -> None:
    with pytest.raises(ConfigError, match="keep_releases"):
        StateSection(keep_releases=keep)


@pytest.mark.parametrize("changes", [{"max_epochs": 0}, {"validation_users": -1}])
def test_adaptation_that_fails_only_after_training_is_refused_at_once(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        AdaptationSection(**changes)


def test_a_platform_fits_models_unless_its_file_says_otherwise(tmp_path: Path) -> None:
    assert load(tmp_path, PLATFORM_TOML).adaptation == AdaptationSection(
        enabled=True, max_epochs=40, validation_users=1500
    )
    text = PLATFORM_TOML + "[adaptation]\nenabled = false\nvalidation_users = 0\n"
    assert load(tmp_path, text).adaptation == AdaptationSection(enabled=False, validation_users=0)


def test_the_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    config = move_in(tmp_path, epsilon=math.inf, trust="none")
    assert load(tmp_path, dump_config(config)).data == config.data
    assert config.simulation == SimulationSection(seed=3)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("", "either file or assortment, found neither"),
        ('file = "a.csv"\nassortment = "b.csv"', "either file or assortment, found both"),
        ('file = "a.csv"\nkey_file = "secret"', "key_file"),
        ('key_file = "secret"', "found neither"),
    ],
)
def test_there_is_one_source_of_the_catalogue(tmp_path: Path, lines: str, named: str) -> None:
    text = PLATFORM_TOML.replace('file = "catalogue.csv"', lines)
    with pytest.raises(ConfigError, match=rf"\[catalogue\].*{named}"):
        load(tmp_path, text)


def test_an_assortment_is_found_beside_the_file(tmp_path: Path) -> None:
    lines = 'assortment = "own.csv"\nkey_file = "secret"'
    found = load(tmp_path, PLATFORM_TOML.replace('file = "catalogue.csv"', lines)).catalogue
    assert found == CatalogueSection(assortment=tmp_path / "own.csv", key_file=tmp_path / "secret")


def test_a_misspelt_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[privacy\].*'epsilom', did you mean 'epsilon'"):
        load(tmp_path, PLATFORM_TOML.replace("epsilon", "epsilom"))


def test_secure_sums_need_keys_and_somebody_to_hide_among(tmp_path: Path) -> None:
    config = move_in(tmp_path, simulation=False)
    privacy = replace(config.privacy, trust="secagg")
    with pytest.raises(ConfigError, match=r"needs a \[secagg\] section"):
        replace(config, privacy=privacy)
    keys: dict[str, Any] = {
        "private_key": tmp_path / "node.key",
        "platform_keys": tmp_path / "platforms",
    }
    assert replace(config, privacy=privacy, secagg=SecaggSection(**keys)).secagg
    with pytest.raises(ConfigError, match="min_summed: found 1"):
        SecaggSection(**keys, min_summed=1)
    with pytest.raises(ConfigError, match="max_colluding: found 0"):
        SecaggSection(**keys, max_colluding=0)

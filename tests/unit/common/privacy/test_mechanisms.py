"""A mechanism is a value that an accountant can trust."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from common.errors import ConfigError
from common.privacy.mechanisms import SampledGaussian, mechanism_from_dict

MECHANISM = SampledGaussian(noise_multiplier=1.5, sampling_rate=0.25, steps=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", -1e-9),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("sampling_rate", 0.0),
        ("sampling_rate", -0.1),
        ("sampling_rate", 1.0000001),
        ("sampling_rate", math.nan),
        ("steps", 0),
        ("steps", -3),
        ("steps", 1.5),
        ("steps", True),
        ("steps", 10**9 + 1),
        ("steps", 10**400),
        ("unit", "interaction"),
        ("unit", ""),
    ],
)
def test_what_no_accountant_may_see_is_refused(field: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=field):
        replace(MECHANISM, **{field: value})


def test_a_mechanism_cannot_change_after_it_was_priced() -> None:
    with pytest.raises(FrozenInstanceError):
        MECHANISM.steps = 1  # type: ignore[misc]


def test_the_plain_form_is_pinned_down_and_leads_back() -> None:
    plain = json.loads(json.dumps(MECHANISM.to_dict()))
    assert plain == {
        "type": "sampled-gaussian",
        "noise_multiplier": 1.5,
        "sampling_rate": 0.25,
        "steps": 3,
        "unit": "user",
    }
    assert mechanism_from_dict(plain) == MECHANISM


@pytest.mark.parametrize(
    "change",
    [
        {"type": "laplace"},
        {"type": None},
        {"steps": "3"},
        {"noise_multiplier": "1"},
        {"noise_multiplier": None},
        {"sampling_rate": 2.0},
        {"unit": "interaction"},
        {"clipping": 1.0},
    ],
)
def test_an_accountant_never_guesses_what_ran(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        mechanism_from_dict({**MECHANISM.to_dict(), **change})


@pytest.mark.parametrize("field", ["type", "noise_multiplier", "sampling_rate", "steps"])
def test_a_field_that_decides_the_price_cannot_be_left_out(field: str) -> None:
    plain = MECHANISM.to_dict()
    del plain[field]
    with pytest.raises(ConfigError):
        mechanism_from_dict(plain)

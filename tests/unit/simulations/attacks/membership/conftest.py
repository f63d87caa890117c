"""One small marketplace, for all tests of the membership attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.data.synthetic import MarketplaceConfig, generate_marketplace

if TYPE_CHECKING:
    from common.data.marketplace import Marketplace


@pytest.fixture(scope="session")
def marketplace() -> Marketplace:
    return generate_marketplace(MarketplaceConfig(), seed=0).marketplace

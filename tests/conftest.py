"""What all tests share: one thread each, no network, no traces at home, the real markets."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from common.cli import QUIET_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

# Read when torch, Flower and Ray are first imported, so before any test module is. The tests
# already run side by side, and one thread adds up floats in one order.
os.environ.update(QUIET_ENVIRONMENT)
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# The same examples in every run, and no timing that a busy machine could fail.
hypothesis.settings.register_profile("crossrec", deadline=None, derandomize=True)
hypothesis.settings.load_profile("crossrec")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("ray") is None:
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(pytest.mark.skip(reason="the extra `ray` is not installed"))


@pytest.fixture(scope="session", autouse=True)
def _flower_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower-home")))
        yield


@pytest.fixture(scope="session")
def xmrec_folder(request: pytest.FixtureRequest) -> Path:
    """Folder of the five XMRec markets; a test without them is skipped.

    ``CROSSREC_XMREC_DATA`` names it; otherwise it is looked for beside the checkout.
    """
    named = os.environ.get("CROSSREC_XMREC_DATA")
    folder = Path(named) if named else request.config.rootpath / "../shared/data/xmrec"
    if not folder.is_dir():
        if named:
            pytest.fail(f"CROSSREC_XMREC_DATA names {named}, which is no folder")
        pytest.skip("the XMRec markets are not here; CROSSREC_XMREC_DATA can name their folder")
    return folder.resolve()

"""The units that the README names are units that systemd understands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = ("server/crossrec-server.service", "client/crossrec-client.service")


def verified(unit: Path) -> subprocess.CompletedProcess[str]:
    words = ["systemd-analyze", "verify", str(unit)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong(tmp_path: Path, name: str) -> None:
    text = (ROOT / name).read_text()
    assert "/opt/crossrec/bin/crossrec" in text
    # What is installed elsewhere on this machine is not what is checked.
    unit = tmp_path / Path(name).name
    unit.write_text(text.replace("/opt/crossrec/bin/crossrec", sys.executable))
    done = verified(unit)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("Restart=", "Restart=sometimes"))
    assert "sometimes" in verified(unit).stderr


@pytest.mark.parametrize("name", UNITS)
def test_the_readme_names_it(name: str) -> None:
    assert f"]({name})" in (ROOT / "README.md").read_text(encoding="utf-8")

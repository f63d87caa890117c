from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from client import node
from client.config import PlatformConfig, ServerSection
from client.node import Node, is_running
from client.status import describe
from common.errors import ConfigError, StateError
from tests.unit.client.homes import make_home

if TYPE_CHECKING:
    from pathlib import Path

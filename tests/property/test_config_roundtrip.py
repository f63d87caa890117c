"""Laws of the configuration format, over arbitrary values and arbitrary documents."""

from __future__ import annotations

import contextlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from common.config import dump_config, parse_config
from common.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    number: float = 0.5
    choice: Literal["a", "b", 3] = "a"
    path: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    text: str
    count: int
    flag: bool
    maybe: str | None = None
    pair: tuple[int, str] = (0, "")
    numbers: tuple[float, ...] = ()
    section: Section = field(default_factory=Section)
    sections: tuple[Section, ...] = ()


numbers = st.floats(allow_nan=False)
sections = st.builds(
    Section,
    number=numbers,
    choice=st.sampled_from(["a", "b", 3]),
    path=st.none() | st.text("abc/. é", min_size=1).map(Path),
)
documents = st.builds(
    Document,
    text=st.text(),
    count=st.integers(),
    flag=st.booleans(),
    maybe=st.none() | st.text(),
    pair=st.tuples(st.integers(), st.text()),
    numbers=st.lists(numbers).map(tuple),
    section=sections,
    sections=st.lists(sections, max_size=3).map(tuple),
)
KEYS = st.sampled_from(["text", "count", "flag", "maybe", "pair", "numbers", "section", "sections"])
toml_values = st.recursive(
    st.text(max_size=5) | st.integers() | st.just(10**400) | st.floats() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["number", "choice", "path", "other"]), inner)
    ),
    max_leaves=8,
)


@given(documents)
def test_what_is_written_reads_back_equal(document: Document) -> None:
    assert parse_config(tomllib.loads(dump_config(document)), Document, "x.toml") == document


@given(st.dictionaries(KEYS | st.text(max_size=6), toml_values))
def test_any_document_is_read_or_refused_by_name(mapping: dict[str, object]) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_config(mapping, Document, "x.toml"), Document)

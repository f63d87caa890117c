"""The benchmark runs the protocol that is deployed, counts what is sent, and checks every sum."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from common.errors import RunFailed
from common.messages import Reply
from common.secagg.protocol import mask_
from common.wire import decode
from server.aggregation import StreamingSum
from simulations.benchmarks import commands
from simulations.benchmarks.secagg import compare, grid, rounds
from simulations.benchmarks.secagg.costs import (
    RoundCost,
    SecaggCase,
    StageCost,
    Subject,
    allowed_drops,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flwr.app import RecordDict

K, D = 5, 1
CASE = SecaggCase(platforms=K, parameters=100, drops=D)
SUBJECTS: tuple[Subject, ...] = get_args(Subject)


class _Thread(threading.Thread):
    """Platforms in a thread instead of a process: what they do is the same."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
        pipe, *rest = args
        # As with a process, each side closes an end of its own.
        super().__init__(target=target, args=(Connection(os.dup(pipe.fileno())), *rest))

    def kill(self) -> None:
        """Nothing to do: the closed pipe ends it."""


class _Threads:
    Process = _Thread
    Pipe = staticmethod(multiprocessing.Pipe)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Run rounds in this process; lists what passes between both sides, in order."""
    contents: list[bytes] = []
    to_bytes: Callable[[RecordDict], bytes] = grid.to_bytes

    def remember(record: RecordDict) -> bytes:
        contents.append(to_bytes(record))
        return contents[-1]

    monkeypatch.setattr(grid, "to_bytes", remember)
    monkeypatch.setattr(rounds, "to_bytes", remember)
    monkeypatch.setattr(rounds, "get_context", lambda _: _Threads)
    logger = logging.getLogger("flwr")
    level, threads = logger.level, torch.get_num_threads()
    yield contents
    logger.setLevel(level)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_bytes_are_the_lengths_of_what_was_sent(
    subject: Subject, sent: list[bytes], tmp_path: Path
) -> None:
    cost = rounds.run_round(CASE, subject, tmp_path)
    # Names, and so messages, are equally long; a dropped platform's message is never encoded.
    asked, answered = sent[0::2], sent[1::2]
    count = {stage.stage: K for stage in cost.stages}
    if subject.endswith("-drops"):
        late = ("mask", "confirm", "unmask", "collect_masked_vectors")
        count |= {stage: K - D for stage in late if stage in count}
    assert sum(count.values()) == len(asked) == len(answered)
    first = 0
    for stage in cost.stages:
        part = slice(first, first + count[stage.stage])
        assert stage.received_bytes == np.median([len(content) for content in asked[part]])
        assert stage.sent_bytes == np.median([len(content) for content in answered[part]])
        first += count[stage.stage]
    unanswered = D if subject.endswith("-drops") else 0
    assert cost.messages == len(sent) + unanswered


@pytest.mark.parametrize(
    ("subject", "stages"),
    [
        ("plain", ["round"]),
        ("secagg", ["round", "share", "mask", "confirm", "unmask"]),
        ("flower", ["setup", "share_keys", "collect_masked_vectors", "unmask"]),
    ],
)
def test_every_stage_is_measured(
    subject: Subject, stages: list[str], sent: list[bytes], tmp_path: Path
) -> None:
    cost = rounds.run_round(CASE, subject, tmp_path)
    assert [stage.stage for stage in cost.stages] == stages
    assert cost.platform_seconds == sum(stage.seconds for stage in cost.stages) > 0
    assert cost.server_seconds > 0
    assert cost.lattice_bits == 32
    assert sent


def test_a_masked_release_is_sent_once_and_is_no_larger_than_a_plain_one(
    sent: list[bytes], tmp_path: Path
) -> None:
    rounds.run_round(CASE, "secagg", tmp_path)
    replies = [decode(grid.from_bytes(content), Reply) for content in sent[1::2]]
    masked = [arrays["masked"] for reply, arrays in replies if reply.outcome == "masked"]
    assert [(array.dtype, array.size) for array in masked] == [(np.dtype("<u4"), 100)] * K


def test_a_wrong_sum_is_no_measurement(
    sent: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mask_badly_(vector: np.ndarray, *rest: object) -> None:
        mask_(vector, *rest)  # type: ignore[arg-type]
        vector[7] += 1

    monkeypatch.setattr("client.secure_sum.mask_", mask_badly_)
    with pytest.raises(RunFailed, match=r"secagg: the sum of 5 platforms is off by"):
        rounds.run_round(CASE, "secagg", tmp_path)
    assert sent


def test_a_plain_mean_without_one_platform_is_no_measurement(
    sent: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(StreamingSum):
        def add(self, release: dict[str, np.ndarray]) -> None:
            if self.count < K - 1:
                super().add(release)

    monkeypatch.setattr(rounds, "StreamingSum", Forgetful)
    with pytest.raises(RunFailed, match=r"plain: the sum of 5 platforms is off by"):
        rounds.run_round(CASE, "plain", tmp_path)
    assert sent


def test_as_many_drop_out_as_the_target_says_and_terms_allow() -> None:
    assert [allowed_drops(number) for number in (3, 4, 5, 10, 20, 100)] == [0, 1, 1, 3, 2, 10]
    for number in range(3, 300):
        drops = allowed_drops(number)
        assert 2 * (number - drops) > number + CASE.colluding
        neighbours = replace(CASE, platforms=number, drops=drops).sparse_neighbours
        assert neighbours % 2 == 0
        assert neighbours >= CASE.colluding + drops + 1


def test_few_neighbours_are_measured_where_platforms_are_many() -> None:
    few, many = replace(CASE, drops=0), SecaggCase(platforms=100, parameters=100, drops=10)
    assert few.subjects == ("plain", "secagg", "flower")
    assert replace(few, with_flower=False).subjects == ("plain", "secagg")
    assert set(many.subjects) == set(SUBJECTS) - {"flower", "flower-drops"}


def test_flower_is_measured_smaller_where_it_is_too_slow_and_then_has_no_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = SecaggCase(platforms=40, parameters=10_000_000, drops=0)
    assert case.for_subject("secagg") == case
    assert case.for_subject("flower").parameters == 6_250_000
    assert CASE.for_subject("flower") == CASE

    def measured(case: SecaggCase, subject: Subject) -> RoundCost:
        return replace(_cost(1.0), case=case.for_subject(subject), subject=subject)

    monkeypatch.setattr(compare, "measure", measured)
    found = {cost.subject: cost for cost in compare.compare(case, repeats=2)}
    assert found["flower"].ratio_to_plain is None
    assert found["secagg"].ratio_to_plain == 1.0


def test_ratios_compare_with_plain_in_the_same_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"plain": iter([1.0, 10.0, 3.0]), "secagg": iter([2.0, 15.0, 3.0])}
    case = replace(CASE, drops=0, with_flower=False)
    monkeypatch.setattr(
        compare,
        "measure",
        lambda case, subject: replace(_cost(next(seconds[subject])), case=case, subject=subject),
    )
    order: list[str] = []
    plain, secagg = compare.compare(case, repeats=3, begin=order.append)
    assert order == ["plain", "secagg"] * 3
    assert (plain.platform_seconds, plain.ratio_to_plain) == (3.0, 1.0)
    assert (secagg.platform_seconds, secagg.server_seconds) == (3.0, 6.0)
    assert secagg.ratio_to_plain == secagg.platform_ratio_to_plain == 1.5
    assert secagg.cpu_ratio_to_plain == 1.5
    assert secagg.bytes_ratio_to_plain == secagg.sent_ratio_to_plain == 1.0


def _cost(seconds: float) -> RoundCost:
    stage = StageCost(
        stage="round",
        seconds=seconds,
        cpu_seconds=seconds,
        sent_bytes=10,
        received_bytes=20,
    )
    return RoundCost(
        case=CASE,
        subject="plain",
        stages=(stage,),
        server_seconds=2 * seconds,
        server_cpu_seconds=2 * seconds,
        messages=2,
        lattice_bits=32,
        platform_mebibytes=100.0,
        server_mebibytes=100.0,
    )


def test_the_command_measures_each_round_in_processes_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "secagg.json"
    arguments = ["--quick", "--drops", "0", "--no-flower", "--out", str(file)]
    done = CliRunner().invoke(commands.app, ["secagg", *arguments], env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    assert "4 platforms, 1,000 parameters" in done.output
    rows = json.loads(file.read_text())
    assert [row["subject"] for row in rows] == ["plain", "secagg"]
    assert [row["messages"] for row in rows] == [8, 40]
    for row in rows:
        assert 50 < row["platform_mebibytes"] < 2000
        assert row["sent_bytes"] > 4000


def test_help_shows_an_example() -> None:
    done = CliRunner().invoke(commands.app, ["secagg", "--help"], env={"COLUMNS": "140"})
    assert "crossrec benchmark secagg --platforms 10 --parameters 5000000" in done.output

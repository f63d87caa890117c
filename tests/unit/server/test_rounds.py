"""A run goes on with the honest platforms, whatever another sends, and says what it left out."""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from common.errors import RunFailed, StateError
from common.storage import read_arrays
from common.wire import encode
from server import run as server_run
from server.checkpoint import Checkpoints
from server.config import TrainingSection, ValidationSection
from server.run import FederationRun
from tests.unit.server.scripted import (
    AVERAGING,
    MODEL,
    NUM_ITEMS,
    POPULATION,
    RUN_ID,
    Answer,
    ScriptedGrid,
    Shop,
    events,
    federation,
    honest_adoption,
    honest_release,
    outcomes,
    profile,
    release,
    reply,
    with_json,
    write_catalogue_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from flwr.app import Message

    from common.messages import AdoptRequest, TrainRequest
    from common.models.partition import Arrays
    from server.config import FederationConfig
    from server.strategy import ServerState

HONEST = ("east", "north", "west")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_catalogue_file(tmp_path)
    return tmp_path


def shops(folder: Path, names: Sequence[str] = HONEST) -> list[Shop]:
    return [Shop(profile=profile(name, folder / "catalogue.csv")) for name in names]


def joined_by(folder: Path, train: Callable[[TrainRequest], Answer]) -> list[Shop]:
    """Three honest platforms and one, called ``evil``, that answers rounds its own way."""
    evil = Shop(profile=profile("evil", folder / "catalogue.csv"), train=train)
    return [*shops(folder), evil]


def run(config: FederationConfig, grid: ScriptedGrid) -> ServerState:
    return FederationRun(config, grid).run()


def mean_release(round_number: int, names: Sequence[str] = HONEST) -> Arrays:
    releases = [release(name, round_number) for name in names]
    return {key: np.mean([r[key] for r in releases], axis=0, dtype="f8") for key in releases[0]}


def assert_mean_of_honest(state: ServerState, grid: ScriptedGrid) -> None:
    """Under AVERAGING, the first round moved the parameters by the mean of the honest."""
    assert state.rounds_done == 1
    for key, mean in mean_release(1).items():
        moved = state.parameters[key] - grid.shared[0][key]
        np.testing.assert_allclose(moved, mean, rtol=1e-5, atol=1e-6)


def saved(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def header_of(shape: str) -> bytes:
    """A .npy file that promises more than it holds."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


def arrays_with(changes: dict[str, np.ndarray | None] | None = None) -> RecordDict:
    """A good release but for ``changes``; None takes an array away."""
    arrays = {**release("evil", 1), **(changes or {})}
    kept = {name: array for name, array in arrays.items() if array is not None}
    return encode(reply("evil", 1), kept)


def bytes_for_bias(data: bytes, stype: str = "numpy.ndarray") -> RecordDict:
    record = arrays_with()
    array = Array(dtype="float32", shape=(NUM_ITEMS,), stype=stype, data=data)
    record.array_records["arrays"]["items.bias"] = array
    return record


NONCE = {"nonce": "0" * 32}


def with_record(key: str, value: ArrayRecord | ConfigRecord | MetricRecord) -> RecordDict:
    record = arrays_with()
    record[key] = value
    return record


def poisoned(value: float) -> np.ndarray:
    array = release("evil", 1)["items.weight"]
    array[0, 0] = value
    return array


# What is wrong -> (the answer of `evil`, what the journal must say).
BAD_ANSWERS: dict[str, tuple[Callable[[], Answer], str]] = {
    "renamed-array": (
        lambda: arrays_with({"items.bias": None, "bias": np.zeros(NUM_ITEMS, "f4")}),
        "left out: .*missing.*items.bias.*not allowed.*bias",
    ),
    "missing-array": (
        lambda: arrays_with({"items.bias": None}),
        r"left out: .*missing \['items.bias",
    ),
    "private-array": (
        lambda: arrays_with({"user_vectors": np.zeros((2, 3), "f4")}),
        r"left out: .*not allowed \['user_vectors",
    ),
    "no-arrays": (lambda: encode(reply("evil", 1)), "left out: .*missing"),
    "broadcastable-shape": (
        lambda: arrays_with({"items.bias": np.zeros(1, "f4")}),
        r"left out: items.bias: .*\(1,\).*expected float32 of shape \(6,\)",
    ),
    "transposed": (
        lambda: arrays_with({"items.weight": np.zeros((3, NUM_ITEMS), "f4")}),
        r"left out: items.weight: .*\(3, 6\)",
    ),
    "float64": (
        lambda: arrays_with({"items.bias": np.zeros(NUM_ITEMS)}),
        "left out: .*float64",
    ),
    "big-endian": (
        lambda: arrays_with({"items.bias": np.zeros(NUM_ITEMS, ">f4")}),
        "left out: .*>f4",
    ),
    "integers": (
        lambda: arrays_with({"items.bias": np.zeros(NUM_ITEMS, "i4")}),
        "left out: .*int32",
    ),
    "nan": (
        lambda: arrays_with({"items.weight": poisoned(np.nan)}),
        "left out: items.weight: .*NaN",
    ),
    "infinity": (
        lambda: arrays_with({"items.weight": poisoned(np.inf)}),
        "left out: items.weight: .*infinity",
    ),
    "another-platform": (
        lambda: encode(reply("north", 1), release("north", 1)),
        "left out: answers for 'north'.*expected 'evil'",
    ),
    "foreign-round": (
        lambda: encode(reply("evil", 7), release("evil", 7)),
        "left out: .*round 7; expected .*, 1",
    ),
    "foreign-run": (
        lambda: encode(reply("evil", 1, run_id="autumn"), release("evil", 1)),
        "left out: .*run 'autumn'.*expected .*'spring'",
    ),
    "adoption-in-a-round": (
        lambda: encode(reply("evil", 1, outcome="adopted"), release("evil", 1)),
        "left out: outcome 'adopted', expected 'released'",
    ),
    "unknown-outcome": (
        lambda: with_json(platform="evil", run_id=RUN_ID, round_number=1, outcome="stolen"),
        "left out: malformed message: .*outcome.*stolen",
    ),
    "unknown-field": (
        lambda: with_json(
            platform="evil", run_id=RUN_ID, round_number=1, outcome="released", loss=0.3
        ),
        "left out: malformed message: .*unknown key 'loss'",
    ),
    "missing-field": (
        lambda: with_json(platform="evil", run_id=RUN_ID, outcome="released"),
        "left out: malformed message: .*round_number.*missing",
    ),
    "text-for-a-number": (
        lambda: with_json(platform="evil", run_id=RUN_ID, round_number="1", outcome="released"),
        "left out: malformed message: .*round_number",
    ),
    "metrics-beside": (
        lambda: with_record("metrics", MetricRecord({"loss": 0.3})),
        "left out: malformed message: .*metrics",
    ),
    "arrays-that-are-none": (
        lambda: with_record("arrays", ConfigRecord({"items.bias": 1})),
        "left out: malformed message: 'arrays' holds no arrays",
    ),
    "second-key-in-the-message": (
        lambda: with_record("message", ConfigRecord({"json": "{}", **NONCE, "note": "hello"})),
        "left out: malformed message",
    ),
    "a-number-for-json": (
        lambda: with_record("message", ConfigRecord({"json": 5, **NONCE})),
        "left out: malformed message",
    ),
    "garbage-json": (
        lambda: with_record("message", ConfigRecord({"json": '{"platform": ', **NONCE})),
        "left out: malformed message",
    ),
    "deep-json": (
        lambda: with_record("message", ConfigRecord({"json": "[" * 200_000, **NONCE})),
        "left out: malformed message",
    ),
    "endless-number": (
        lambda: with_record(
            "message", ConfigRecord({"json": f'{{"round_number": {"9" * 5000}}}', **NONCE})
        ),
        "left out: malformed message",
    ),
    "empty-record": (RecordDict, "left out: malformed message"),
    "undecodable-bytes": (
        lambda: bytes_for_bias(b"no array at all"),
        "left out: malformed message: an array cannot be decoded",
    ),
    "no-bytes": (lambda: bytes_for_bias(b""), "left out: malformed message"),
    "cut-short": (lambda: bytes_for_bias(header_of("(6,)")), "left out: malformed message"),
    "promises-terabytes": (
        lambda: bytes_for_bias(header_of("(1000000000000,)")),
        "left out: malformed message",
    ),
    "negative-shape": (lambda: bytes_for_bias(header_of("(-6,)")), "left out: malformed message"),
    "shape-is-code": (lambda: bytes_for_bias(header_of("exit(1)")), "left out: malformed message"),
    "an-archive-of-arrays": (
        lambda: bytes_for_bias(saved(a=np.zeros(NUM_ITEMS, "f4"))),
        "left out: malformed message",
    ),
    "a-broken-archive": (
        lambda: bytes_for_bias(saved(a=np.zeros(NUM_ITEMS, "f4"))[:60]),
        "left out: malformed message",
    ),
    "a-pickle": (
        lambda: bytes_for_bias(_pickled(np.array([print], dtype=object))),
        "left out: malformed message",
    ),
    "error": (lambda: Error(0, "the phone was flat"), "no answer: the phone was flat"),
    "declined": (
        lambda: encode(reply("evil", 1, outcome="declined", reason="budget: all spent.")),
        "declined: budget: all spent.",
    ),
    "a-novel-for-a-reason": (
        lambda: encode(reply("evil", 1, outcome="declined", reason="x" * 10_000)),
        "declined: x{100,500}…$",
    ),
    "a-library-for-a-reason": (
        lambda: encode(reply("evil", 1, outcome="declined", reason="x" * 1_000_000)),
        "left out: malformed message: 1,000,[0-9]{3} bytes, expected at most",
    ),
    "100-megabytes": (
        lambda: arrays_with({"items.bias": np.zeros(25_000_000, "f4")}),
        "left out: malformed message: 100,[0-9,]* bytes, expected at most",
    ),
    "huge": (
        lambda: arrays_with({"items.bias": np.full(NUM_ITEMS, 1.0, "f4")}),
        r"left out: norm: found 2.4.*; a platform of the declared population sends at most 0\.",
    ),
    "beyond-float32-squares": (
        lambda: arrays_with({"items.bias": np.full(NUM_ITEMS, 3e38, "f4")}),
        "left out: norm: found ",
    ),
    "silence": (lambda: None, "no answer: the round closed before it answered"),
}


def _pickled(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_bad_answer_is_left_out_with_its_cause_and_the_round_goes_on(
    folder: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, said = BAD_ANSWERS[case]
    config = federation(folder, [*HONEST, "evil"])
    monkeypatch.setattr("server.exchange.POLL_SECONDS", 0.01)
    grid = ScriptedGrid(joined_by(folder, lambda _request: answer()))
    state = run(config, grid)
    assert_mean_of_honest(state, grid)
    found = outcomes(config)
    assert {found.pop(name) for name in HONEST} == {"released"}
    assert set(found) == {"evil"}
    assert re.match(said, found["evil"], re.DOTALL)


def test_a_platform_that_cannot_be_reached_is_named(folder: Path) -> None:
    config = federation(folder, [*HONEST, "evil"])
    grid = ScriptedGrid(joined_by(folder, honest_release))
    grid.unreachable_after_meeting = {4}
    assert_mean_of_honest(run(config, grid), grid)
    assert outcomes(config)["evil"] == "no answer: the node could not be reached"


def test_an_answer_that_arrives_twice_counts_once(folder: Path) -> None:
    config = federation(folder, HONEST)
    grid = ScriptedGrid(shops(folder), copies=2)
    assert_mean_of_honest(run(config, grid), grid)
    assert [event["platform"] for event in events(config, "reply")] == list(HONEST)
    assert [event["releases"] for event in events(config, "round-closed")] == [3]
    assert [event["platform"] for event in events(config, "handed-over")] == list(HONEST)


def test_order_of_arrival_changes_nothing_beyond_rounding(tmp_path: Path) -> None:
    results = []
    for number, order in enumerate(itertools.permutations(HONEST)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_catalogue_file(folder)
        grid = ScriptedGrid(shops(folder, order))
        results.append(run(federation(folder, HONEST, rounds=2), grid).parameters)
        # Platforms are asked in the order of their names, whatever their nodes are called.
        assert [request.platform for request in grid.requests] == 2 * list(HONEST)
    for parameters in results:
        for key, array in parameters.items():
            np.testing.assert_allclose(array, results[0][key], rtol=1e-6, atol=1e-7)


def test_every_platform_is_asked_the_same_and_divides_by_one_public_number(folder: Path) -> None:
    config = federation(folder, HONEST, sampling_rate=0.5, clipping_norm=0.3, local_steps=2)
    populations = {"east": 100, "north": 200, "west": 600}
    members = [
        Shop(profile=profile(name, folder / "catalogue.csv", population=number))
        for name, number in populations.items()
    ]
    grid = ScriptedGrid(members)
    run(config, grid)
    assert [request.platform for request in grid.requests] == list(HONEST)
    first, *others = grid.requests
    for request in others:
        assert replace(request, platform=first.platform) == first
    assert first.denominator == pytest.approx(0.5 * 300)
    assert first.num_platforms == 3
    assert (first.noise_multiplier, first.clipping_norm) == (1.0, 0.3)
    assert (first.local_steps, first.round_number, first.run_id) == (2, 1, RUN_ID)


# --- Quorum -------------------------------------------------------------------------------------


def failing_from(round_number: int) -> Callable[[TrainRequest], Answer]:
    def train(request: TrainRequest) -> Answer:
        if request.round_number < round_number:
            return honest_release(request)
        return encode(
            reply(request.platform, request.round_number, outcome="declined", reason="budget: x")
        )

    return train


def test_a_round_below_the_quorum_ends_the_run_and_finished_rounds_stay(folder: Path) -> None:
    training = TrainingSection()
    config = federation(folder, HONEST, quorum=3, rounds=4, training=training)
    members = shops(folder)
    members[1].train = failing_from(3)
    with pytest.raises(RunFailed, match=r"round 3: 2 of 3 platforms released, 3 are needed"):
        run(config, ScriptedGrid(members))
    kept = Checkpoints(config.run_folder, RUN_ID).load()
    assert kept is not None
    assert kept.rounds_done == 2
    (failed,) = events(config, "run-failed")
    assert "round 3" in failed["reason"]
    assert outcomes(config)["north"] == "declined: budget: x"

    again = ScriptedGrid(shops(folder))
    resumed = run(config, again)
    assert [request.round_number for request in again.requests] == [3, 3, 3, 4, 4, 4]

    undisturbed = federation(folder, HONEST, quorum=3, rounds=4, training=training)
    undisturbed = replace(undisturbed, state=replace(undisturbed.state, folder=folder / "other"))
    expected = run(undisturbed, ScriptedGrid(shops(folder)))
    assert_equal_states(resumed, expected)


def assert_equal_states(found: ServerState, expected: ServerState) -> None:
    assert found.rounds_done == expected.rounds_done
    for part in ("parameters", "first_moment", "second_moment"):
        for key, array in getattr(expected, part).items():
            np.testing.assert_array_equal(getattr(found, part)[key], array)


def test_secure_aggregation_needs_the_noise_of_every_platform(folder: Path) -> None:
    config = federation(folder, HONEST, quorum=1, trust="secagg-simulated")
    catalogue = folder / "catalogue.csv"
    members = [Shop(profile=profile(n, catalogue, trust="secagg-simulated")) for n in HONEST]
    run(config, ScriptedGrid(members))
    other = replace(config, state=replace(config.state, folder=folder / "other"))
    members[0].train = failing_from(1)
    with pytest.raises(RunFailed, match=r"2 of 3 platforms released, .* made for at least 3"):
        run(other, ScriptedGrid(members))


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_an_overflow_ends_the_run_before_it_is_written_down(
    folder: Path, strategy: Literal["fedavg", "fedadam"]
) -> None:
    training = replace(AVERAGING, strategy=strategy, server_learning_rate=1e3)
    validation = ValidationSection(population_slack=1e45)
    config = federation(folder, HONEST, rounds=2, training=training, validation=validation)
    members = shops(folder)

    def huge(request: TrainRequest) -> Answer:
        arrays = release("north", request.round_number)
        if request.round_number == 2:
            arrays["items.bias"][:] = 3e38
        return encode(reply("north", request.round_number), arrays)

    members[1].train = huge
    with pytest.raises(RunFailed, match=r"round 2: .*overflow"):
        run(config, ScriptedGrid(members))
    kept = Checkpoints(config.run_folder, RUN_ID).load()
    assert kept is not None
    assert kept.rounds_done == 1
    assert all(np.isfinite(array).all() for array in kept.parameters.values())


# --- Meeting ------------------------------------------------------------------------------------

STRANGERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unknown": (lambda file: profile("mars", file), "'mars' is not part of this federation"),
    "same-name": (lambda file: profile("north", file), "'north' joined twice"),
    "other-catalogue": (
        lambda file: profile("evil", file, catalogue_digest="0" * 64),
        "'evil' holds another version of the catalogue",
    ),
    "other-trust": (
        lambda file: profile("evil", file, trust="none"),
        "'evil' accepts trust 'none' per user; this run is 'local'",
    ),
    "nobody": (lambda file: profile("evil", file, population=0), "declares population 0"),
    "everybody": (
        # Everyone divides by the mean population: one liar must not silence the others.
        lambda file: profile("evil", file, population=10**300),
        "declares population 1000",
    ),
    "error": (lambda _: Error(0, "no configuration"), "no configuration"),
    "silence": (lambda _: None, "the round closed before it answered"),
    "release-for-a-profile": (
        lambda _: encode(reply("evil", 1), release("evil", 1)),
        "malformed message",
    ),
    "nothing": (lambda _: RecordDict(), "malformed message"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_stranger_is_refused_with_the_cause_and_the_others_start(folder: Path, case: str) -> None:
    make, said = STRANGERS[case]
    config = federation(folder, [*HONEST, "evil"])
    grid = ScriptedGrid([*shops(folder), Shop(profile=make(folder / "catalogue.csv"))])
    assert_mean_of_honest(run(config, grid), grid)
    assert [event["platform"] for event in events(config, "platform-joined")] == list(HONEST)
    (refused,) = events(config, "platform-refused")
    assert refused["node"] == "4"
    assert said in refused["reason"]
    assert {request.platform for request in grid.requests} == set(HONEST)
    assert {request.num_platforms for request in grid.requests} == {3}


def test_a_platform_that_is_away_is_asked_again_until_it_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_run, "ASK_AGAIN_SECONDS", 0.01)
    config = federation(folder, HONEST)
    patient = replace(config.federation, join_timeout_seconds=30.0)
    config = replace(config, federation=patient)
    members = shops(folder)
    there, away = members[0].profile, [Error(0, "Node Unavailable")] * 3

    class Returning(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            members[0].profile = away.pop() if away else there
            return super().pull_messages(message_ids)

    grid = Returning(members)
    run(config, grid)
    joined = [event["platform"] for event in events(config, "platform-joined")]
    assert sorted(joined) == sorted(HONEST)
    assert {request.platform for request in grid.requests} == set(HONEST)


def test_with_too_few_platforms_no_round_starts_and_the_missing_are_named(folder: Path) -> None:
    config = federation(folder, HONEST)
    grid = ScriptedGrid(shops(folder, ["north"]))
    with pytest.raises(RunFailed, match=r"1 of 3 platforms joined.*missing: \['east', 'west'\]"):
        run(config, grid)
    assert grid.requests == []
    assert len(events(config, "run-failed")) == 1


def test_a_platform_that_comes_late_is_waited_for(folder: Path) -> None:
    config = federation(folder, HONEST)
    federation_section = replace(config.federation, join_timeout_seconds=30.0)
    config = replace(config, federation=federation_section)
    grid = ScriptedGrid(shops(folder))
    answers = iter([[1], [1, 2], [1, 2], [1, 2, 3]])
    grid.get_node_ids = lambda: next(answers)  # type: ignore[method-assign]
    assert_mean_of_honest(run(config, grid), grid)


# --- Handing over -------------------------------------------------------------------------------


def test_the_finished_model_is_handed_to_each_platform_under_its_own_name(folder: Path) -> None:
    config = federation(folder, [*HONEST, "evil"], rounds=1)
    members = joined_by(folder, honest_release)
    asked: list[str] = []

    def adopt(request: AdoptRequest) -> Answer:
        asked.append(request.platform)
        return honest_adoption(request)

    members[2].adopt = adopt
    members[0].adopt = lambda _: encode(reply("east", 0, outcome="declined", reason="failed: log"))
    members[1].adopt = lambda _: encode(reply("north", 0))
    members[3].adopt = lambda _: Error(0, "gone")
    run(config, ScriptedGrid(members))
    assert {event["platform"]: event["outcome"] for event in events(config, "handed-over")} == {
        "east": "declined: failed: log",
        "evil": "no answer: gone",
        "north": "left out: outcome 'released', expected 'adopted'.",
        "west": "adopted",
    }
    assert asked == ["west"]
    assert len(events(config, "run-finished")) == 1


# --- Resuming -----------------------------------------------------------------------------------


def interrupted_at(round_number: int) -> Callable[[TrainRequest], Answer]:
    def train(request: TrainRequest) -> Answer:
        if request.round_number == round_number:
            raise KeyboardInterrupt
        return honest_release(request)

    return train


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize("when", [1, 2, 3])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    folder: Path, when: int, strategy: Literal["fedavg", "fedadam"]
) -> None:
    training = replace(TrainingSection(), strategy=strategy)
    config = federation(folder, HONEST, rounds=3, training=training)
    members = shops(folder)
    members[1].train = interrupted_at(when)
    with pytest.raises(KeyboardInterrupt):
        run(config, ScriptedGrid(members))
    resumed = run(config, ScriptedGrid(shops(folder)))
    other = replace(config, state=replace(config.state, folder=folder / "other"))
    assert_equal_states(resumed, run(other, ScriptedGrid(shops(folder))))
    assert (folder / "state" / RUN_ID / "checkpoint.safetensors").read_bytes() == (
        folder / "other" / RUN_ID / "checkpoint.safetensors"
    ).read_bytes()


def test_a_crash_around_the_checkpoint_loses_no_round_of_the_journal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = federation(folder, HONEST, rounds=3)
    save = Checkpoints.save

    def crash_around(when: str) -> None:
        def crash(self: Checkpoints, state: ServerState) -> None:
            if when == "after":
                save(self, state)
            raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoints, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            run(config, ScriptedGrid(shops(folder)))
        monkeypatch.setattr(Checkpoints, "save", save)

    crash_around("before")
    crash_around("after")
    run(config, ScriptedGrid(shops(folder)))
    assert {event["round"] for event in events(config, "round-closed")} == {1, 2, 3}


def test_a_finished_run_hands_over_again_without_another_round(folder: Path) -> None:
    config = federation(folder, HONEST)
    run(config, ScriptedGrid(shops(folder)))
    again = ScriptedGrid(shops(folder))
    run(config, again)
    assert again.requests == []
    assert len(events(config, "handed-over")) == 6


def test_a_checkpoint_of_another_model_is_refused(folder: Path) -> None:
    config = federation(folder, HONEST)
    run(config, ScriptedGrid(shops(folder)))
    other = federation(folder, HONEST, model=replace(MODEL, dim=4), rounds=2)
    with pytest.raises(StateError, match="belongs to another model"):
        run(other, ScriptedGrid(shops(folder)))
    arrays, _ = read_arrays(folder / "state" / RUN_ID / "checkpoint.safetensors")
    assert arrays["parameters/items.weight"].shape == (NUM_ITEMS, 3)
    assert "another model" in events(other, "run-failed")[0]["reason"]


def test_the_journal_tells_the_norm_of_the_mean_and_nothing_of_single_releases(
    folder: Path,
) -> None:
    config = federation(folder, HONEST)
    run(config, ScriptedGrid(shops(folder)))
    (closed,) = events(config, "round-closed")
    norm = np.sqrt(sum(np.square(array).sum() for array in mean_release(1).values()))
    assert closed == {"round": 1, "releases": 3, "update_norm": pytest.approx(norm, rel=1e-6)}
    assert all(set(e) == {"round", "platform", "outcome"} for e in events(config, "reply"))
    assert POPULATION == 100  # profiles are not written down either
    assert "population" not in (config.run_folder / "journal.jsonl").read_text(encoding="utf-8")

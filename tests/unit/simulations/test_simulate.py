"""A run: the same options give the same result, whatever interrupts it."""

from __future__ import annotations

import pkgutil
import shlex
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import client.app
import client.platform
from common.errors import ConfigError, DataError, RunFailed
from common.models.ncf import NcfConfig
from server.journal import read_journal
from simulations.result import read_result
from simulations.simulate import OPTIONS_FILE, SimulationRun, load_marketplace
from tests.shops import SIZES, execute, options, read_document, run_all, write_shops

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flwr.app import Context, Message

    from simulations.options import SimulationOptions

NUM_MESSAGES = 2 + 2 * 2 + 2 * 2 + 2
"""Of a run with two platforms and two rounds: profiles, sums, rounds, hand-over."""

MODELS = {
    *("popularity", "item_knn", "ease", "als", "ncf"),
    *("local", "federated"),
}
"""Of every plan; rounds add ``shared``."""


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shops(tmp_path_factory.mktemp("data") / "shops")


@pytest.fixture(scope="module")
def undisturbed(shops: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_all(options(shops), tmp_path_factory.mktemp("undisturbed") / "run")


# --- The same seed ------------------------------------------------------------------------------


def test_the_same_options_give_the_same_result_in_another_folder(
    shops: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    assert run_all(options(shops), tmp_path / "elsewhere" / "run") == undisturbed


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"epsilon": 4.0}, {"strategy": "fedavg"}, {"clipping_norm": 0.1}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_options_give_another_result(
    shops: Path, tmp_path: Path, undisturbed: dict[str, Any], changes: dict[str, Any]
) -> None:
    other = run_all(options(shops, **changes), tmp_path / "run")
    norms = [record["update_norm"] for record in other["rounds"]]
    # From the second round on: the first noise may only be scaled.
    assert norms[1] != undisturbed["rounds"][1]["update_norm"]


def test_the_order_of_rows_in_the_files_changes_nothing(
    tmp_path: Path, shops: Path, undisturbed: dict[str, Any]
) -> None:
    (tmp_path / "data").mkdir()
    for path in shops.iterdir():
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        text = "\n".join([header, *reversed(rows)])
        (tmp_path / "data" / path.name).write_text(text, encoding="utf-8")
    other = run_all(options(tmp_path / "data"), tmp_path / "run")
    for name in SIZES:
        assert other["platforms"][name]["models"] == undisturbed["platforms"][name]["models"]
    assert other["rounds"] == undisturbed["rounds"]


def test_what_a_result_says_of_a_run(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["status"] == "complete"
    assert undisturbed["resume_command"] is None
    assert undisturbed["simulation"] is True
    assert (undisturbed["rounds_planned"], undisturbed["rounds_completed"]) == (2, 2)
    assert undisturbed["sums_planned"] == 2
    released = dict.fromkeys(SIZES, "released")
    assert undisturbed["sums"] == [
        {"quantity": quantity, "platforms": released} for quantity in ("item-counts", "item-pairs")
    ]
    assert undisturbed["data"]["is_synthetic"] is False
    assert undisturbed["data"]["catalogue_derived"] is True
    assert "seeded" in undisturbed["privacy"]["noise_source"]
    for name, num_users in SIZES.items():
        platform = undisturbed["platforms"][name]
        assert (platform["num_users"], platform["num_test_users"]) == (num_users, num_users)
        assert platform["num_interactions"] == 6 * num_users
        assert set(platform["models"]) == MODELS | {"shared"}
        history = platform["epsilon_history"]
        assert len(history) == 2 + 2
        assert 0 < history[0] < history[1] < history[2] < history[3]
        assert history[3] == platform["epsilon"] <= 8.0
        assert platform["epsilon_if_secagg_broken"] is None
        for model in platform["models"].values():
            assert 0.0 <= model["ndcg@10"] <= model["hr@10"] <= 1.0


def test_a_run_of_sums_has_no_rounds_and_no_noise_but_for_the_sums(
    shops: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    document = run_all(options(shops, plan="pairs", epsilon=5.0), tmp_path / "run")
    assert (document["rounds_planned"], document["rounds"]) == (0, [])
    assert (document["sums_planned"], document["sums"]) == (2, undisturbed["sums"])
    assert document["privacy"]["released"] == ["item counts (sum)", "item pairs (sum)"]
    assert document["privacy"]["clipping_norm"] == 1.0
    assert "round" not in document["privacy"]["mechanism"]
    for name, platform in document["platforms"].items():
        assert set(platform["models"]) == MODELS
        assert len(platform["epsilon_history"]) == 2
        assert 0.98 * 5.0 < platform["epsilon"] <= 5.0
        assert platform["epsilon"] == document["privacy"]["planned_epsilon"]
        # Fitted before anything was joined: the same whatever the budget is spent on.
        for model in MODELS - {"federated"}:
            assert platform["models"][model] == undisturbed["platforms"][name]["models"][model]
    assert not list(tmp_path.glob("run/federation-state/*/checkpoint.safetensors"))


# --- Interruptions ------------------------------------------------------------------------------


def interrupt_after(monkeypatch: pytest.MonkeyPatch, num_messages: int) -> None:
    """Press Ctrl-C while the message after ``num_messages`` is being answered."""
    answered = 0
    real = client.app.app

    def app(message: Message, context: Context) -> Message:
        nonlocal answered
        if answered == num_messages:
            raise KeyboardInterrupt
        answered += 1
        return real(message, context)

    monkeypatch.setattr(client.app, "app", app)


@pytest.mark.parametrize("num_messages", range(NUM_MESSAGES))
def test_an_interrupted_run_has_a_valid_partial_result_and_ends_like_an_undisturbed_one(
    shops: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
    num_messages: int,
) -> None:
    run = SimulationRun.open(options(shops), tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_after(patch, num_messages)
        partial = execute(run)
    assert partial["status"] == "partial"
    assert len(partial["sums"]) == max(0, min(2, (num_messages - 2) // 2))
    assert partial["rounds_completed"] == max(0, min(2, (num_messages - 6) // 2))
    assert shlex.split(partial["resume_command"])[-2:] == ["--resume", str(run.folder)]
    assert run.finished() is None
    read_result(run.folder / "result.json")
    for platform in partial["platforms"].values():
        closed = len(partial["sums"]) + partial["rounds_completed"]
        assert len(platform["epsilon_history"]) in {closed, closed + 1}
    again = (
        SimulationRun.reopen(run.folder)
        if num_messages % 2
        else SimulationRun.open(options(shops), run.folder)
    )
    assert execute(again) == undisturbed
    assert again.finished() is not None


INSIDE: dict[str, tuple[str, int]] = {
    # Where Ctrl-C falls -> at which call there.
    "after-the-reservation": ("client.platform.load_platform_data", 2),
    "in-the-pairs": ("client.platform.pair_sum", 2),
    "while-storing-a-sum": ("client.platform.PlatformState.store_release", 3),
    "while-recording-a-sum": ("common.privacy.ledger.Ledger.commit", 2),
    "before-the-counts-are-written": ("server.checkpoint.CollectedSums.save", 1),
    "before-the-pairs-are-written": ("server.checkpoint.CollectedSums.save", 2),
    "in-training": ("client.platform.train_round", 3),
    "while-storing": ("client.platform.PlatformState.store_release", 7),
    "while-recording": ("common.privacy.ledger.Ledger.commit", 6),
    "before-a-checkpoint": ("server.checkpoint.Checkpoints.save", 1),
    "in-the-first-fitting": ("client.platform.fit_alone", 1),
    "in-the-gate": ("client.platform.join", 2),
    "in-the-second-adaptation": ("client.platform.fit_user_vectors", 2),
    "between-two-models": ("client.model_files.ModelFiles.save_joined", 1),
    "between-the-model-and-what-is-served": ("client.model_files.write_durably", 3),
    "in-the-last-journal-entry": ("server.journal.Journal.write", 23),
}


@pytest.mark.parametrize("case", INSIDE)
def test_so_does_one_interrupted_inside_a_step(
    shops: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, Any],
    case: str,
) -> None:
    place, call_number = INSIDE[case]
    module, _, name = place.rpartition(".")
    calls = 0
    real = _resolve(place)

    def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == call_number:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    run = SimulationRun.open(options(shops), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", call)
        assert execute(run)["status"] == "partial"
    assert execute(run) == undisturbed


def _resolve(place: str) -> Callable[..., Any]:
    found: Callable[..., Any] = pkgutil.resolve_name(place)
    return found


def test_a_run_interrupted_twice_still_ends_like_an_undisturbed_one(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    run = SimulationRun.open(options(shops), tmp_path / "run")
    for num_messages in (5, 8):
        with monkeypatch.context() as patch:
            interrupt_after(patch, num_messages)
            assert execute(run)["status"] == "partial"
    assert execute(run) == undisturbed


@pytest.mark.parametrize("num_messages", [3, 9])
def test_a_partial_run_has_a_report_that_says_so(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_messages: int
) -> None:
    run = SimulationRun.open(options(shops), tmp_path / "run")
    interrupt_after(monkeypatch, num_messages)
    execute(run, with_report=True)
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "--resume" in report
    assert "partial" in report.lower() or "interrupted" in report.lower()


def test_a_run_that_cannot_go_on_has_a_partial_result_too(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError

    run = SimulationRun.open(options(shops), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(client.platform, "train_round", fail)
        with pytest.raises(RunFailed, match="round 1: 0 of 2 platforms released"):
            execute(run)
    partial = read_document(run.folder)
    assert (partial["status"], partial["rounds_completed"]) == ("partial", 0)
    # A platform answers nobody after a failure, until a person has looked at the cause.
    with pytest.raises(RunFailed):
        execute(run)
    for path in run.folder.glob("platforms/*/state/stopped.txt"):
        path.unlink()
    assert execute(run) == undisturbed


# --- Trust --------------------------------------------------------------------------------------


def test_without_privacy_nothing_is_promised(shops: Path, tmp_path: Path) -> None:
    document = run_all(options(shops, trust="none"), tmp_path / "run")
    assert document["privacy"]["planned_epsilon"] is None
    for platform in document["platforms"].values():
        assert platform["epsilon"] is None
        assert platform["epsilon_budget"] is None
        assert platform["epsilon_history"] == [None] * 4
        assert platform["noise_multiplier"] == 0.0
        assert platform["trust"] == "none"


def test_simulated_secure_aggregation_says_what_single_releases_would_cost(
    tmp_path: Path,
) -> None:
    data = write_shops(tmp_path / "data", {"east": 10, "north": 10, "south": 10})
    local = run_all(options(data), tmp_path / "local")
    summed = run_all(options(data, trust="secagg-simulated"), tmp_path / "summed")
    for name, platform in summed["platforms"].items():
        assert platform["epsilon"] == local["platforms"][name]["epsilon"] <= 8.0
        assert platform["epsilon_if_secagg_broken"] > platform["epsilon"]
        assert platform["trust"] == "secagg-simulated"
    # Two thirds of the noise variance are left out of what each platform adds alone.
    ratio = [
        summed["rounds"][0]["update_norm"] / local["rounds"][0]["update_norm"],
    ]
    assert 0.5 < ratio[0] < 0.9


def test_simulated_secure_aggregation_needs_two_platforms(tmp_path: Path) -> None:
    data = write_shops(tmp_path / "data", {"north": 10})
    with pytest.raises(ConfigError, match="of 1 platforms 0 may drop out and 1 collude"):
        run_all(options(data, plan="ncf", trust="secagg-simulated"), tmp_path / "run")


def test_a_single_platform_is_a_federation_too(tmp_path: Path) -> None:
    data = write_shops(tmp_path / "data", {"north": 10})
    document = run_all(options(data, plan="ncf"), tmp_path / "run")
    assert document["sums"] == []
    assert document["rounds"][1]["platforms"] == {"north": "released"}


def test_sums_need_items_that_two_platforms_list(tmp_path: Path) -> None:
    data = write_shops(tmp_path / "data", {"north": 10})
    with pytest.raises(ConfigError, match=r"0 items are listed by two platforms.*plan 'ncf'"):
        run_all(options(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Folders ------------------------------------------------------------------------------------


def test_a_folder_with_another_run_is_refused_and_left_as_it_was(
    shops: Path, tmp_path: Path
) -> None:
    run_all(options(shops), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match=r"holds a run with other options.*--overwrite"):
        SimulationRun.open(options(shops, seed=1), tmp_path / "run")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_a_mistake_in_the_data_does_not_take_the_folder(shops: Path, tmp_path: Path) -> None:
    run = SimulationRun.open(options(tmp_path / "typo"), tmp_path / "run")
    with pytest.raises(DataError):
        execute(run)
    SimulationRun.open(options(shops), tmp_path / "run")


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"holds no run to resume: .*{OPTIONS_FILE}"):
        SimulationRun.reopen(tmp_path)


def test_reopening_gives_the_same_options(shops: Path, tmp_path: Path) -> None:
    model = NcfConfig(kind="mlp", loss="bce", hidden=(8, 4), dim=3, num_negatives=7)
    asked = options(shops, candidates=50, trust="none", model=model, engine="ray", seed=-3)
    run = SimulationRun.open(asked, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.simulate.lay_out", _stop)
        with pytest.raises(InterruptedError):
            run.execute()
    assert SimulationRun.reopen(tmp_path / "run").options == asked


def _stop(*_: object) -> NoReturn:
    raise InterruptedError


def test_only_a_folder_that_holds_a_run_is_overwritten(shops: Path, tmp_path: Path) -> None:
    (tmp_path / "holidays").mkdir()
    (tmp_path / "holidays" / "photo.jpg").write_bytes(b"x")
    (tmp_path / "file").write_text("x")
    for name in ("holidays", "file"):
        with pytest.raises(ConfigError, match="is not deleted"):
            SimulationRun.open(options(shops), tmp_path / name, overwrite=True)
    assert (tmp_path / "holidays" / "photo.jpg").exists()
    run_all(options(shops), tmp_path / "run")
    (tmp_path / "run" / "left-over").write_text("x")
    SimulationRun.open(options(shops), tmp_path / "run", overwrite=True).execute()
    assert not (tmp_path / "run" / "left-over").exists()


def test_a_run_does_not_move_into_a_folder_that_holds_something_else(
    shops: Path, tmp_path: Path
) -> None:
    # --overwrite deletes the folder of a run: it must have been the run's own.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="home holds something that is no run"):
        SimulationRun.open(options(shops), tmp_path / "home")
    (tmp_path / "empty").mkdir()
    SimulationRun.open(options(shops), tmp_path / "empty")


# --- Data ---------------------------------------------------------------------------------------


def test_the_built_in_marketplace_follows_the_seed() -> None:
    def first_rows(seed: int) -> list[Any]:
        marketplace = load_marketplace(options(None, seed=seed))
        return marketplace.platforms[0].interactions.head(20).to_dict("records")

    assert first_rows(1) == first_rows(1) != first_rows(2)


def test_the_command_of_a_result_repeats_the_run(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NcfConfig(kind="mlp", loss="bce", hidden=(8, 4), dim=3, num_negatives=7)
    asked = options(
        shops, plan="ncf", model=model, epsilon=3.5, delta=1e-6, trust="none", sampling_rate=0.5,
        local_steps=2, clipping_norm=0.1, strategy="fedavg", server_learning_rate=0.3,
        candidates=50, seed=4, user_column="user_id", item_column="item_id",
        newcomer="north:0.5", adapting=("north", "south"),
    )  # fmt: skip
    words = shlex.split(run_all(asked, tmp_path / "run")["command"])
    assert words[:2] == ["crossrec", "simulate"]
    assert _asked_by(words[1:], tmp_path, monkeypatch) == asked


def _asked_by(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> SimulationOptions:
    """The options that the command line would run."""
    from common.cli import main

    seen: list[SimulationOptions] = []

    def open_run(asked: SimulationOptions, _folder: Path, **_: object) -> NoReturn:
        seen.append(asked)
        raise ConfigError("enough")

    monkeypatch.setattr(SimulationRun, "open", open_run)
    with pytest.raises(SystemExit):
        main([*words, "--out", str(folder / "other")])
    return seen[0]


def test_a_round_that_was_begun_twice_counts_once(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimulationRun.open(options(shops), tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        execute(run)
    document = execute(run)
    assert begun(run, "round-started", "round") == [1, 1, 2]
    assert [record["round"] for record in document["rounds"]] == [1, 2]


def test_so_does_a_sum(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    run = SimulationRun.open(options(shops), tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        execute(run)
    assert execute(run)["sums"] == undisturbed["sums"]
    assert begun(run, "sum-started", "quantity") == ["item-counts", "item-pairs", "item-pairs"]


def begun(run: SimulationRun, kind: str, fact: str) -> list[Any]:
    """What the journal says of each beginning."""
    journal = read_journal(run.folder / "federation-state" / run.options.run_id)
    return [event[fact] for _, event in journal if event["event"] == kind]


def test_candidates_change_the_measure_and_nothing_else(
    shops: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    few = run_all(replace(options(shops), candidates=5), tmp_path / "run")
    assert any("5 sampled candidates" in note for note in few["data"]["notes"])
    for name in SIZES:
        few_models, all_models = (
            document["platforms"][name]["models"] for document in (few, undisturbed)
        )
        for model in few_models:
            assert few_models[model]["hr@10"] == 1.0 >= all_models[model]["hr@10"]
    for key in ("privacy", "sums", "rounds"):
        assert few[key] == undisturbed[key]


def test_data_that_lie_elsewhere_give_the_same_numbers(
    shops: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    # Another machine, another path: the noise must not follow from it.
    shutil.copytree(shops, tmp_path / "moved")
    moved = run_all(options(tmp_path / "moved"), tmp_path / "run")
    for key in ("platforms", "sums", "rounds", "privacy"):
        assert moved[key] == undisturbed[key]


@pytest.mark.parametrize("changes", [{"epsilon": 200.0, "rounds": 1}, {"clipping_norm": 50.0}])
def test_platforms_of_a_simulation_agree_to_what_the_run_asks(
    shops: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    document = run_all(options(shops, **changes), tmp_path / "run")
    for record in (*document["sums"], *document["rounds"]):
        assert record["platforms"] == dict.fromkeys(SIZES, "released")

"""One comparison from its options to its result: run the cells, collect, write down."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from common.config import dump_config, load_config
from common.errors import ConfigError, RunFailed
from common.storage import FOR_ALL, write_durably
from simulations.compare.cells import EVERYONE, enumerate_cells, group_cells
from simulations.compare.collect import collect
from simulations.compare.options import CompareOptions
from simulations.compare.plots import save_figures
from simulations.compare.pool import run_groups
from simulations.compare.progress import CellProgress
from simulations.compare.report import write_report
from simulations.compare.result import CompareResult, read_compare_result, write_compare_result
from simulations.compare.worker import Group, finished_cell, needs_work
from simulations.newcomers import Newcomer, require_platforms
from simulations.simulate import load_marketplace, option_words, plain_values

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from simulations.compare.cells import Cell

OPTIONS_FILE = "comparison.toml"
RESULT_FILE = "compare.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison and the folder it lives in."""

    options: CompareOptions
    """What it does."""
    folder: Path
    """Where everything of it is written."""
    overwrite: bool = False
    """Replace the comparison in ``folder``, once the new one is known to be able to start."""

    @classmethod
    def open(cls, options: CompareOptions, folder: Path, *, overwrite: bool = False) -> Comparison:
        """Start a comparison in ``folder``, or find there the same one, finished or not.

        Raises:
            ConfigError: if the folder holds another one that is not to be overwritten, or
                something that is none.
        """
        path = folder / OPTIONS_FILE
        if folder.exists() and not path.exists() and (folder.is_file() or any(folder.iterdir())):
            msg = (
                f"{folder} holds something that is no comparison; it is not deleted: "
                "choose another --out."
            )
            raise ConfigError(msg)
        if not overwrite and path.exists() and not is_same(options, folder):
            msg = (
                f"{folder} holds a comparison with other options ({path}). "
                "Choose another --out, or replace that one with --overwrite."
            )
            raise ConfigError(msg)
        return cls(options=options, folder=folder, overwrite=overwrite)

    @classmethod
    def reopen(cls, folder: Path) -> Comparison:
        """Find the comparison in ``folder``.

        Raises:
            ConfigError: if there is none.
        """
        path = folder / OPTIONS_FILE
        if not path.exists():
            msg = f"{folder} holds no comparison to resume: {path} is missing."
            raise ConfigError(msg)
        return cls(options=load_config(path, CompareOptions), folder=folder)

    def finished(self) -> CompareResult | None:
        """The result, if the comparison is complete."""
        path = self.folder / RESULT_FILE
        if self.overwrite or not path.exists():
            return None
        result = read_compare_result(path)
        return result if result.status == "complete" else None

    def execute(self, console: Console | None = None, *, workers: int = 1) -> CompareResult:
        """Run what is missing, to the end or until Ctrl-C, and write result, figures and report.

        Finished cells are kept; failed ones are tried again.

        Raises:
            ConfigError: if an option names a platform that is not there, before anything is
                written.
            DataError: if the data cannot be used.
            RunFailed: if a process was killed; a partial result is written first.
        """
        platforms = self._platforms()
        if self.overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        write_durably(self.folder / OPTIONS_FILE, dump_config(self.options).encode(), mode=FOR_ALL)
        cells = enumerate_cells(self.options, platforms)
        left = [c for c in cells if finished_cell(self.folder, c, self.options.base) is None]
        groups = [
            Group(folder=self.folder, base=self.options.base, cells=group)
            for group in group_cells(cells)
            if needs_work(self.folder, group, left)
        ]
        failure: RunFailed | None = None
        try:
            with CellProgress(console, done=len(cells) - len(left), total=len(cells)) as progress:
                run_groups(groups, workers=workers, ended=progress.ended)
        except RunFailed as error:
            failure = error
        result = self._result(cells, platforms)
        write_compare_result(self.folder / RESULT_FILE, result)
        save_figures(result, self.folder / "figures")
        write_report(self.folder / REPORT_FILE, result)
        if failure is not None:
            raise failure
        return result

    def _platforms(self) -> list[str]:
        """Names of all platforms, each newcomer among them."""
        marketplace = load_marketplace(self.options.base)
        names = sorted(platform.name for platform in marketplace.platforms)
        newcomers = {Newcomer.parse(text).platform for text in self.options.newcomers}
        require_platforms(sorted(newcomers - {EVERYONE}), marketplace)
        return names

    def _result(self, cells: tuple[Cell, ...], platforms: list[str]) -> CompareResult:
        options = self.options
        found = collect(options, self.folder, cells, platforms)
        is_complete = all(record.status == "finished" for record in found.cells)
        again = shlex.join(["crossrec", "compare", "--resume", str(self.folder)])
        return CompareResult(
            status="complete" if is_complete else "partial",
            configuration=plain_values(asdict(options)),
            epsilons=tuple(sorted(options.epsilons)),
            main_epsilon=options.main_epsilon,
            delta=options.base.delta,
            trusts=options.trusts,
            seeds=options.seeds,
            versions=found.versions,
            command=compare_command(options),
            resume_command=None if is_complete else again,
            data=found.data,
            scenarios=found.scenarios,
            cells=found.cells,
        )


def is_same(options: CompareOptions, folder: Path) -> bool:
    """Whether ``folder`` holds a comparison with these options."""
    path = folder / OPTIONS_FILE
    return path.exists() and path.read_text(encoding="utf-8") == dump_config(options)


def compare_command(options: CompareOptions) -> str:
    """The command that repeats a comparison."""
    words = ["crossrec", "compare"]
    for newcomer in options.newcomers:
        words += ["--newcomer", newcomer]
    if not options.full:
        words.append("--only-newcomers")
    words += ["--epsilon", ",".join(f"{epsilon:.12g}" for epsilon in options.epsilons)]
    words += ["--trust", ",".join(options.trusts)]
    words += ["--seeds", _seed_text(options.seeds)]
    return shlex.join(words + option_words(options.base))


def _seed_text(seeds: tuple[int, ...]) -> str:
    if seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))

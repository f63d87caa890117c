"""Groups of cells on several processes, which end when they are done or their parent ends."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import RunFailed
from simulations.compare.worker import run_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event

    from simulations.compare.cells import Cell
    from simulations.compare.worker import Group

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_POLL_SECONDS = 0.3

_ended: Queue[tuple[Cell, str | None]] | None = None


def run_groups(
    groups: Sequence[Group], *, workers: int, ended: Callable[[Cell, str | None], None]
) -> bool:
    """Run every group; False after Ctrl-C, when all work has stopped.

    Args:
        groups: each is run by one process.
        workers: processes; with 1 everything runs in this one. With more each computes with one
            thread.
        ended: called in this process for each cell that ends, with the reason if it failed.
    """
    if workers == 1 or len(groups) < 2:
        return all(run_group(group, ended) for group in groups)
    context = multiprocessing.get_context("spawn")
    queue, stop = context.Queue(), context.Event()
    try:
        return _run_in_pool(groups, workers, queue, stop, ended)
    except BrokenProcessPool as error:
        msg = "a process that ran cells was killed (was there too little memory?); go on later."
        raise RunFailed(msg) from error
    finally:
        _report(queue, ended)


def _run_in_pool(
    groups: Sequence[Group],
    workers: int,
    queue: Queue[tuple[Cell, str | None]],
    stop: Event,
    ended: Callable[[Cell, str | None], None],
) -> bool:
    with (
        _one_thread_each(),
        ProcessPoolExecutor(
            min(workers, len(groups)),
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(queue, stop),
        ) as executor,
    ):
        futures = [executor.submit(_run_here, group) for group in groups]
        waiting = set(futures)
        try:
            while waiting:
                _, waiting = wait(waiting, timeout=_POLL_SECONDS)
                _report(queue, ended)
        except KeyboardInterrupt:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            return False
        return all(future.result() for future in futures)


def _report(
    queue: Queue[tuple[Cell, str | None]], ended: Callable[[Cell, str | None], None]
) -> None:
    while not queue.empty():
        ended(*queue.get())


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start in here compute with one thread: they read it when libraries load."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin(queue: Queue[tuple[Cell, str | None]], stop: Event) -> None:
    """In a new process: leave Ctrl-C to the parent, and stop when it says so, or has died."""
    global _ended  # noqa: PLW0603 - how an initializer hands something to the tasks
    _ended = queue

    def on_interrupt(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()


def _watch(stop: Event) -> None:
    parent = multiprocessing.parent_process()
    while not stop.wait(1.0):
        if parent is not None and not parent.is_alive():
            os._exit(1)
    _thread.interrupt_main()


def _run_here(group: Group) -> bool:
    queue = _ended
    assert queue is not None
    return run_group(group, lambda cell, reason: queue.put((cell, reason)))

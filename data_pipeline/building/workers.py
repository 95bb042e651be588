"""Pool of local worker processes of one rank, which take tasks as they become free.

Workers come from a fork server, a process without threads that has imported everything once: forking this process, with
the threads of torch, BLAS or MPI in it, could deadlock, and starting an interpreter for each takes seconds. A script
that builds with several workers needs the usual `if __name__ == "__main__":`. A worker ends with its parent, even a
killed one.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

Task = tuple[Any, ...]
"""Arguments of one call."""


def assign(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Assign tasks to ranks, the largest first and to the rank with the least work; return the tasks of each."""
    result: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for task in sorted(range(len(sizes)), key=lambda task: (-sizes[task], task)):
        rank = loads.index(min(loads))
        result[rank].append(task)
        loads[rank] += max(sizes[task], 1)
    return result


def work(function: Callable[..., None], tasks: Sequence[Task], workers: int) -> Iterator[int]:
    """Call a function with the arguments of every task; yield the number of each task as it is done.

    Raises:
        ChildProcessError: a worker was killed, for instance because memory ran out.
    """
    if min(workers, len(tasks)) <= 1:
        for number, task in enumerate(tasks):
            function(*task)
            yield number
        return
    children: set[BaseProcess] = set()
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, function.__module__])
    executor = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_follow_parent)
    try:
        futures = {executor.submit(function, *task): number for number, task in enumerate(tasks)}
        children = set(multiprocessing.active_children()) - others
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BaseException as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        if isinstance(error, BrokenProcessPool):
            executor.shutdown()
            raise ChildProcessError(_death(children)) from error
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _death(children: Iterable[BaseProcess]) -> str:
    """Return a message with the workers that died and the cause, without those ended because another died."""
    died = [(each.pid, each.exitcode) for each in children if each.exitcode not in (None, 0, -signal.SIGTERM)]
    said = [f"process {pid} died of {signal.Signals(-code).name}" for pid, code in died if code < 0]
    said += [f"process {pid} ended with exit code {code}" for pid, code in died if code > 0]
    return (
        f"a worker process was killed{': ' if said else ''}{', '.join(said)}; the memory of the machine may not "
        "suffice for this number of --workers: build with fewer."
    )


def _follow_parent() -> None:
    """End with the parent, even if it is killed; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

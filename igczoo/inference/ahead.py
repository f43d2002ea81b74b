"""Work that threads do ahead of whoever uses it."""
from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import Any

__all__ = ['ahead', 'batches', 'thread_count']

MOST_WORKERS = 16


def thread_count(workers: int | None = None) -> int:
    """How many threads ``workers`` means: None stands for as many as this process has cores, MOST_WORKERS at most.

    Raises:
        ValueError: it is no integer from 0.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        return min(cores, MOST_WORKERS)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ValueError(f'workers is {workers!r}; it must be an integer from 0')
    return workers


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of so many items; the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


class _Cores:
    """How many threads torch computes by outside of `ahead`, however many calls of it overlap."""

    def __init__(self):
        self.lock, self.calls, self.count = threading.Lock(), 0, 0

    def __enter__(self) -> int:
        import torch
        with self.lock:
            if not self.calls:
                self.count = torch.get_num_threads()
            self.calls += 1
            return self.count

    def __exit__(self, *error) -> None:
        import torch
        with self.lock:
            self.calls -= 1
            torch.set_num_threads(self.count)       # it is each thread's own, but new threads begin with what was set last


_cores = _Cores()


def ahead(
        function: Callable[[Any], Any], items: Iterable[Any], workers: int, ending: Callable[[], Any] = lambda: None,
) -> Generator[tuple[Any, Any], None, None]:
    """Each item with what a function gives for it, in order, computed by threads beforehand: of 2 * workers items at most.

    An exception, the function's or that of ``items``, is raised in its place in the order. When the generator is closed, by whatever ends
    its user's loop, what has begun is finished, nothing else is begun, and no thread stays.

    What the function computes by torch uses the cores of its thread's share. A thread that had all of them would wait at the end of every
    operation for cores that the other threads have: on two, that took twice as long and more.

    Args:
        function: called from several threads at once.
        items: taken one by one, in the user's thread; may be endless.
        workers: threads; 0 computes each result when it is asked for, in the user's thread.
        ending: called before what has begun is waited for, so that it need not wait for what is not wanted any more.
    """
    if not workers:
        yield from ((item, function(item)) for item in items)
        return
    torch = sys.modules.get('torch')        # nothing computes by what nobody has imported
    with _cores if torch else nullcontext() as cores:
        setting = (torch.set_num_threads, (max(1, cores // workers),)) if torch else ()
        yield from _through(ThreadPoolExecutor(workers, 'igczoo', *setting), function, items, 2 * workers, ending)


def _through(threads: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], most: int,
             ending: Callable[[], Any]) -> Generator[tuple[Any, Any], None, None]:
    """`ahead` by these threads, which it ends; of ``most`` items at most."""
    remaining, waiting = iter(items), deque()

    def start(count: int) -> None:
        try:
            for item in islice(remaining, count):
                waiting.append((item, threads.submit(function, item)))
        except Exception as error:      # of the items; those before it come first
            failed: Future = Future()
            failed.set_exception(error)
            waiting.append((None, failed))

    try:
        start(most)
        while waiting:
            result = waiting[0][1].result()
            yield waiting.popleft()[0], result
            start(1)
    finally:
        ending()
        threads.shutdown(cancel_futures=True)
        waiting.clear()                 # an exception in it would hold its own frame, and so itself

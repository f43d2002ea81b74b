"""Work that threads do ahead of whoever uses it."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

__all__ = ['ahead', 'thread_count']

MOST_WORKERS = 16


def thread_count(workers: int | None = None) -> int:
    """How many threads ``workers`` means: None stands for as many as this process has cores, within reason.

    Raises:
        ValueError: it is no integer from 0.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        return min(cores, MOST_WORKERS)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ValueError(f'workers is {workers!r}; it must be an integer from 0')
    return workers


def ahead(function: Callable[[Any], Any], items: Iterable[Any], workers: int, most: int) -> Iterator[tuple[Any, Any]]:
    """Each item with what a function gives for it, in order, computed by threads beforehand.

    An exception, the function's or that of ``items``, is raised in its place in the order. When the iterator is closed, by whatever
    ends its user's loop, what has begun is finished, nothing else is begun, and no thread stays.

    Args:
        function: called from several threads at once.
        items: taken one by one in the user's thread, as their places get free; may be endless.
        workers: threads; 0 computes each result when it is asked for, in the user's thread.
        most: items that are being computed or wait for their turn, at most.
    """
    if not workers:
        yield from ((item, function(item)) for item in items)
        return
    threads, started, waiting = ThreadPoolExecutor(workers), iter(items), deque()

    def start(count: int) -> None:
        try:
            for item in islice(started, count):
                waiting.append((item, threads.submit(function, item)))
        except Exception as error:      # of the items: those before it come first
            failed: Future = Future()
            failed.set_exception(error)
            waiting.append((None, failed))

    try:
        start(most)
        while waiting:
            item, result = waiting.popleft()
            yield item, result.result()
            start(1)
    finally:
        threads.shutdown(cancel_futures=True)

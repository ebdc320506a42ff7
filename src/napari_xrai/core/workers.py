"""Splitting compiled work over threads, the same way every time: equal seeds give equal results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any


def chunks(n: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover ``range(n)``."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="xrai")


def in_threads(work: Callable[[Any], Any], jobs: Sequence[Any], threads: int) -> list[Any]:
    """``[work(j) for j in jobs]`` on `threads` threads; `work` must release the GIL to gain by it."""
    if threads == 1 or len(jobs) == 1:
        return [work(job) for job in jobs]
    return list(_pool(threads).map(work, jobs))

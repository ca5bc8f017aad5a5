"""What all benchmarks share: how timings are taken and printed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

CORES = len(os.sched_getaffinity(0))


def runs_a_second(run: Callable[[], Any], seconds: float) -> float:
    """How often `run`, which waits for its results, is done in a second; it runs for `seconds` at least."""
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not count:
        run()
        count += 1
    return count / taken


def print_header(names: Sequence[str]) -> None:
    print_row(names)
    print_row(["---"] * len(names))


def print_row(cells: Sequence[Any]) -> None:
    """Prints a row of a table in Markdown."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)

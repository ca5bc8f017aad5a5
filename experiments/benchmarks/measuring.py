"""What all benchmarks share: timing, memory, processes of their own, and tables in Markdown.

It imports neither JAX nor PyTorch, so that a process that measures one of them holds nothing of the other.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CORES = len(os.sched_getaffinity(0))
HOST_ALONE = {"JAX_PLATFORMS": "cpu"}
"""The environment of a process that sees no accelerator."""


def timed(run: Callable[[], Any], repeats: int = 1, *, warm: bool = True) -> np.ndarray:
    """float64 [repeats, 2]: seconds of each run by the clock, and of all cores together.

    Args:
      run: returns arrays of JAX, which may be still to come, or anything else.
      warm: whether it runs once before, to compile.
    """
    import jax

    if warm:
        jax.block_until_ready(run())
    found = np.zeros((repeats, 2))
    for row in found:
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        row[:] = time.perf_counter() - start[0], time.process_time() - start[1]
    return found


def runs_a_second(run: Callable[[], Any], seconds: float) -> float:
    """How often `run`, which waits for its results, is done in a second; it runs for `seconds` at least."""
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds or not count:
        run()
        count += 1
    return count / taken


def peak_bytes() -> int:
    """The most memory that has been resident since the process began, or since `forget_peak`, as Linux reports it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """From now on the peak is counted from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def in_own_process(function: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Calls a module's function in a process that has imported nothing else; arguments and result are JSON.

    Raises:
      RuntimeError: the process failed.
    """
    module = function.__module__
    if module == "__main__" and (spec := sys.modules[module].__spec__):
        module = spec.name
    call = json.dumps([module, function.__name__, *arguments], default=str)
    command = [sys.executable, "-m", __name__, call]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{call} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_header(names: Sequence[str]) -> None:
    print_row(names)
    print_row(["---"] * len(names))


def print_row(cells: Sequence[Any]) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    module, name, *given = json.loads(sys.argv[1])
    print(json.dumps(getattr(importlib.import_module(module), name)(*given)))

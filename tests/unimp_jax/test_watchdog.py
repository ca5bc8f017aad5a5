"""A run that hangs ends itself, says where, and names the process that the others wait for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.watchdog import STATUS, Beat, Watchdog, explained

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys, time
import jax
from unimp_jax.processes import ProcessesConfig, join
from unimp_jax.training.watchdog import Watchdog
told = json.loads(sys.argv[1])
join(ProcessesConfig(**told["processes"]))
def stuck():
    time.sleep(60)
with Watchdog(told["seconds"]) as watchdog:
    for step in range(1, 4):
        watchdog.begin(step, "computing")
        time.sleep(told["seconds"] / 2)
    watchdog.begin(4, told["phase"])
    stuck()
"""


def run(phases: list[str], seconds: float) -> list[tuple[int, str]]:
    """(status, standard error) of processes that all stop at step 4, each in its phase."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for index, phase in enumerate(phases):
        joined = {"coordinator": f"localhost:{port}", "count": len(phases), "index": index} if len(phases) > 1 else {}
        told = json.dumps({"seconds": seconds, "phase": phase, "processes": joined})
        command = [sys.executable, "-c", PROGRAM, told]
        running.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=60)[1] for process in running]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def test_a_process_that_hangs_ends_with_its_stacks():
    ((status, said),) = run(["saving"], 0.5)
    assert status == STATUS
    assert "no progress for 0.5 s (--loop.hang-seconds)" in said
    assert f"process 0 ({socket.gethostname()}), saving at step 4" in said
    assert "in stuck" in said
    assert "Behind" not in said


def test_the_process_that_the_others_wait_for_is_named():
    (first, waits), (second, sleeps) = run(["computing", "waiting for data"], 3.0)
    assert first != 0
    assert second != 0
    told = waits if "Behind the others" in waits else sleeps  # whichever ends first ends the other one
    assert "Behind the others: process 1 (" in told
    assert "waiting for data at step 4" in told
    assert STATUS in (first, second)


def test_what_goes_on_is_left_alone():
    with Watchdog(0.4) as watchdog:
        for step in range(8):
            watchdog.begin(step, "computing")
            time.sleep(0.1)
    time.sleep(0.6)  # nothing is watched any more
    with Watchdog(None):
        time.sleep(0.1)


def beat(process: int, step: int, phase: str) -> Beat:
    return Beat(process, f"host{process}", step, phase, 40.0)


def test_those_behind_are_those_at_the_earliest_place():
    beats = [beat(1, 6, "computing"), beat(2, 5, "saving"), beat(3, 6, "waiting for data")]
    said = explained(beat(0, 6, "computing"), beats, 30.0)
    assert "Behind the others: process 2 (host2), saving at step 5 for 40 s." in said
    said = explained(beat(0, 6, "waiting for data"), [beat(1, 6, "computing"), beat(2, 6, "waiting for data")], 30.0)
    assert "process 0 (host0), waiting for data at step 6 for 40 s; process 2 (host2)" in said
    assert "All 2 processes are at the same point" in explained(
        beat(0, 6, "computing"), [beat(1, 6, "computing")], 30.0
    )


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="hang_seconds 0"):
        LoopConfig(hang_seconds=0)

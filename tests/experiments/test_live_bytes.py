"""What lies on the devices while a run starts, goes on, trains and validates: everything once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.tiny_run import prepare_source

ROOT = Path(__file__).resolve().parents[2]
SMALL_CHANGE = 400_000
"""Bytes: two batches, a step's metrics, the answers of a validation."""


@pytest.mark.slow
def test_a_run_that_goes_on_has_everything_once_on_the_devices(tmp_path):
    command = [sys.executable, "-m", "tests.experiments.live_bytes", prepare_source(tmp_path), tmp_path / "run"]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    state, frozen = told["state"], told["frozen"]
    assert state > 10 * SMALL_CHANGE  # so that a second copy of any part of it would be seen
    restored = told["again"]["restore"]
    assert 0.9 * state < restored < state + SMALL_CHANGE
    for start in ("first", "again"):
        for phase in ("start", "step", "validation"):
            assert told[start][phase] < state + frozen + SMALL_CHANGE, (start, phase)

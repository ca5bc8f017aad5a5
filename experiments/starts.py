"""How a run was started: by which command, on what, with which versions; so that a report can say so."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path

import jax

from data_pipelines.atomic import write_json


def note_start(folder: Path) -> None:
    """Adds this start to `started.json`, unless an earlier one was the same in all but its time; a damaged file is
    begun anew, for nothing but a report reads it."""
    path = folder / "started.json"
    try:
        before = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        before = []
    now = this_start()
    if any({**one, "time": ""} == {**now, "time": ""} for one in before):
        return
    write_json(path, [*before, now])


def this_start() -> dict[str, str]:
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "host": f"{processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {platform.system()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax")),
    }


def processor() -> str:
    """As the maker names it, where the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

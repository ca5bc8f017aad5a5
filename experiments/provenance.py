"""The provenance of a run: the commands that started it, the machines and the versions."""

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


def note_provenance(folder: Path) -> float:
    """Adds the running command to `started.json`, unless an earlier entry differs only in its time, and returns the
    start time of the first command, in seconds since 1970. A damaged file is replaced: only reports read it."""
    path = folder / "started.json"
    try:
        before = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        before = []
    now = provenance()
    if not any({**one, "time": ""} == {**now, "time": ""} for one in before):
        write_json(path, [*before, now])
    return datetime.datetime.fromisoformat([*before, now][0]["time"]).timestamp()


def provenance() -> dict[str, str]:
    """Returns the command, the machine and the versions of this process."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "host": f"{processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {platform.system()}",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax")),
    }


def processor() -> str:
    """Returns the model name of the processor if the system provides it, else its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

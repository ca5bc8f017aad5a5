"""Allows one training at a time in a folder of an object store, by a lease: an object that names its holder and expiry.

A lease is created only if there is none; the store grants this to one of several processes that try. Its holder writes
it again every `REFRESH` seconds, and exits at once if it finds another holder's lease. A lease that was not refreshed
for `LEASE` seconds, or whose process ran on this host and has ended, is stale and is taken over. The clocks of hosts
may differ by less than that.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.object_store import store

LEASE, REFRESH = 60.0, 10.0
SETTLE = 1.0
"""Seconds after which other processes that took over the same stale lease at the same time are visible."""


@contextlib.contextmanager
def leased(path: Path, patience: float) -> Iterator[None]:
    """Holds the lease within the context, after waiting up to `patience` seconds for another holder; DataError if that
    one does not end."""
    token, until, waits = secrets.token_hex(8), time.monotonic() + patience, False
    while not _take(path, token):
        used = f"{path.parent} is in use by another training ({describe(read(path))})"
        if time.monotonic() > until:
            raise DataError(f"{used}; stop it, or name another folder")
        if not waits:
            print(f"{used}; waiting up to {patience:g} s", flush=True)
        waits = True
        time.sleep(0.5)
    over = threading.Event()
    thread = threading.Thread(target=_refresh, args=(path, token, over), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if read(path).get("token") == token:
            path.unlink(missing_ok=True)


def _take(path: Path, token: str) -> bool:
    """Tries to take the lease, and returns whether this process holds it now."""
    held = read(path)
    if held:
        if not is_left_behind(held):
            return False
        print(f"{path}: the lease of {describe(held)} has expired and is taken over", flush=True)
        path.unlink(missing_ok=True)
    try:
        store(path).pipe_file(str(path), signed(token), mode="create")
    except FileExistsError:
        return False
    if held:
        time.sleep(SETTLE)
    return read(path).get("token") == token


def _refresh(path: Path, token: str, over: threading.Event) -> None:
    while not over.wait(REFRESH):
        try:
            held = read(path)
            if held.get("token") == token:
                store(path).pipe_file(str(path), signed(token))
                continue
        except Exception as error:  # a network error: training goes on meanwhile, and may still save
            print(f"WARNING: {path} could not be written ({error})", file=sys.stderr, flush=True)
            continue
        print(f"unimp: {path} was taken over by {describe(held)}, so this training ends", file=sys.stderr, flush=True)
        os._exit(2)  # without saving: the folder belongs to another process


def read(path: Path) -> dict[str, Any]:
    """Returns the content of the lease: empty if there is none, expired if it is invalid."""
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        held = None
    return held if isinstance(held, dict) and isinstance(held.get("until"), float) else {"until": 0.0}


def signed(token: str) -> bytes:
    """Returns the content of a lease that this process holds from now on."""
    now = time.time()
    who = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
    return json.dumps({"token": token, **who, "at": now, "until": now + LEASE}).encode()


def describe(held: dict[str, Any]) -> str:
    """Describes the holder of a lease."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(held.get("at", 0)))
    return f"process {held.get('pid', '?')} on {held.get('host', 'another host')} (at {at})"


def is_left_behind(held: dict[str, Any]) -> bool:
    """Returns whether a lease has expired, or its process was on this machine and has ended."""
    if time.time() > held.get("until", 0):
        return True
    return held.get("machine") == _machine() and not os.path.exists(f"/proc/{held['pid']}")


def _machine() -> str:
    """Identifies the namespace of process ids: the boot of this host, and a container on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts) if len(parts) == 3 else secrets.token_hex(8)  # never equal to another's

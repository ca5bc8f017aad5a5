"""One training at a time in a folder of an object store, by a lease: an object that says who trains and until when.

It is made only where there is none, which stores do for one of several that try. Who holds it writes it anew every
`REFRESH` seconds, and ends at once where it finds another's in its place. One that was not written anew for `LEASE`
seconds, or whose process was of this host and is gone, is left behind, and is taken. Hosts' clocks may differ by less.
"""

from __future__ import annotations

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
"""Seconds after which others that took the same lease at once have been seen."""


@contextlib.contextmanager
def leased(path: Path, patience: float) -> Iterator[None]:
    """Nobody else holds the lease meanwhile.

    Args:
      path: the object.
      patience: seconds that the end of another one is waited for.

    Raises:
      DataError: another process holds it, and does not end meanwhile.
    """
    token, until, waits = secrets.token_hex(8), time.monotonic() + patience, False
    while not _take(path, token):
        if time.monotonic() > until:
            raise DataError(f"{path.parent} is trained in by {said(read(path))}; end that one, or name another folder")
        if not waits:
            print(f"{path.parent} is trained in by {said(read(path))}: waiting up to {patience:g} s", flush=True)
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
    """Whether the lease is this process's now."""
    held = read(path)
    if held:
        if not is_left_behind(held):
            return False
        print(f"{path}: left behind by {said(held)}; it is taken", flush=True)
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
        except Exception as error:  # of the network: the training goes on meanwhile, and may still save
            print(f"WARNING: {path} could not be written ({error})", file=sys.stderr, flush=True)
            continue
        print(f"unimp: {path} was taken by {said(held)}: this training ends", file=sys.stderr, flush=True)
        os._exit(2)  # without saving: the folder is another's


def read(path: Path) -> dict[str, Any]:
    """What the lease says, as of one that is over where it is none; nothing where there is none."""
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        held = None
    return held if isinstance(held, dict) and isinstance(held.get("until"), float) else {"until": 0.0}


def signed(token: str) -> bytes:
    now = time.time()
    who = {"pid": os.getpid(), "host": socket.gethostname(), "machine": _machine()}
    return json.dumps({"token": token, **who, "at": now, "until": now + LEASE}).encode()


def said(held: dict[str, Any]) -> str:
    """Who holds a lease, in words."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(held.get("at", 0)))
    return f"process {held.get('pid', '?')} on {held.get('host', 'another host')} (at {at})"


def is_left_behind(held: dict[str, Any]) -> bool:
    if time.time() > held.get("until", 0):
        return True
    return held.get("machine") == _machine() and not os.path.exists(f"/proc/{held['pid']}")


def _machine() -> str:
    """What has the same numbers of processes: a start of this host's, and of a container on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts) if len(parts) == 3 else secrets.token_hex(8)  # never another's

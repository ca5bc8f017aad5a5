"""Small JSON files, there whole or not at all, and a journal of lines."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from data_pipelines import atomic


def write_json(path: Path, value: Any) -> None:
    """In place of what is there, making the folder; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(path, value, shared=True)


def read_json(path: Path) -> Any:
    """None where there is no file.

    Raises:
      ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from error


def note(journal: Path, cell: str, event: str, **more: Any) -> None:
    """Adds a line, in one piece, to what a sweep's processes say of what they do."""
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    line = {"time": when, "cell": cell, "event": event, "host": socket.gethostname(), "pid": os.getpid(), **more}
    with journal.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")

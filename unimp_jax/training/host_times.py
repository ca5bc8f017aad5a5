"""What the hosts of a run spend their time on, and which of them is the slowest."""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping

import numpy as np
from jax.experimental import multihost_utils

NAME_BYTES = 64
"""Of a host's name, so many."""


def across_hosts(own: Mapping[str, float]) -> dict[str, float | str]:
    """What a row of the log says of seconds that each process has measured; all must call this together.

    It waits for the other processes, and so belongs where their devices have nothing left to do.

    Args:
      own: this process's seconds, of the same phases on all of them.

    Returns:
      `PHASE_seconds`, the mean; and where there are several processes, `PHASE_most_seconds` and `PHASE_slowest_host`:
      the most, and whose they are.
    """
    seconds_PS = _gathered(np.array(list(own.values()), np.float32))
    row: dict[str, float | str] = {}
    for name, seconds_P in zip((phase.replace(" ", "_") for phase in own), seconds_PS.T, strict=True):
        row[f"{name}_seconds"] = float(seconds_P.mean())
        if len(seconds_P) > 1:
            row[f"{name}_most_seconds"] = float(seconds_P.max())
            row[f"{name}_slowest_host"] = hosts()[int(seconds_P.argmax())]
    return row


@functools.cache
def hosts() -> list[str]:
    """The processes' numbers and hosts; the first call is made by all together."""
    own = np.frombuffer(socket.gethostname().encode()[:NAME_BYTES].ljust(NAME_BYTES), np.uint8)
    names = (bytes(row).decode(errors="replace").rstrip() for row in _gathered(own))
    return [f"process {number} ({name})" for number, name in enumerate(names)]


def _gathered(own_S: np.ndarray) -> np.ndarray:
    """[P, S]."""
    return np.asarray(multihost_utils.process_allgather(own_S)).reshape(-1, len(own_S))

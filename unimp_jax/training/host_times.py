"""How the hosts of a run spend their time, and which of them is the slowest."""

import functools
import socket
from collections.abc import Mapping

import numpy as np
from jax.experimental import multihost_utils

NAME_BYTES = 64
"""Maximum length of a host's name in bytes."""


def across_hosts(own: Mapping[str, float]) -> dict[str, float | str]:
    """Returns the log entries for durations, in seconds, of the same phases on each process: `PHASE_seconds`, the mean;
    with several processes also `PHASE_most_seconds`, the maximum, and `PHASE_slowest_host`, the process with the
    maximum. All processes must call this together; as it waits for the others, their devices should have no work
    left."""
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
    """Returns process numbers and host names; the first call must be made by all processes together."""
    own = np.frombuffer(socket.gethostname().encode()[:NAME_BYTES].ljust(NAME_BYTES), np.uint8)
    names = (bytes(row).decode(errors="replace").rstrip() for row in _gathered(own))
    return [f"process {number} ({name})" for number, name in enumerate(names)]


def _gathered(own_S: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, [P, S]."""
    return np.asarray(multihost_utils.process_allgather(own_S)).reshape(-1, len(own_S))

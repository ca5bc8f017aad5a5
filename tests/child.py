"""What processes that tests start inherit."""

from __future__ import annotations

import os
import socket


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment, and more, for one that compiles as quickly, but sees as many devices as its own
    settings say and not this one's eight."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if not flag.startswith("--xla_force_host_platform_device_count")]
    return {**os.environ, "XLA_FLAGS": " ".join(kept), **more}


def free_port() -> str:
    """Returns a port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])

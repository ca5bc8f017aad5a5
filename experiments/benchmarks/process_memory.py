"""What a process has had in memory, at most, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def peak_bytes() -> int:
    """The most that has been resident since the process began, or since `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """The peak starts anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")

"""Reading what was saved: errors that pass are waited for, damage is distinguished, and all processes take one view."""

from __future__ import annotations

import enum
import json
import re
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
import tenacity
from jax.experimental import multihost_utils

T = TypeVar("T")

WAITS = (1.0, 5.0, 25.0)
"""Seconds between attempts at reading what a file system or a store does not give for the moment."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read, told in one line."""


class DamagedError(CheckpointError):
    """Files are missing, cut short or broken."""


class View(enum.IntEnum):
    """What an attempt at reading came to; of several processes' the largest counts."""

    WHOLE = 0
    DAMAGED = 1
    OF_ANOTHER_CONFIGURATION = 2
    OUT_OF_REACH = 3


MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# TensorStore tells everything as ValueError, with the status code of absl in front or the system's words inside.
_OUT_OF_REACH = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|PERMISSION_DENIED|UNAUTHENTICATED|INTERNAL|"
    r"UNKNOWN): |stale file handle|connection (reset|refused|aborted|timed out)|timed out|input/output error|"
    r"temporarily unavailable|too many open files|permission denied|cannot allocate memory|transport endpoint",
    re.IGNORECASE,
)
_OTHER_CONFIGURATION = re.compile(r"Requested shape|tree structures do not match|it has no parameter")
_MISSING = re.compile(r"\bNOT_FOUND: ")


def view_of(error: BaseException) -> View:
    """Only what says that files are missing or do not decode is damage; what is not known to be, is not."""
    links = list(_chain(error))
    texts = [str(link) for link in links]
    if any(isinstance(link, (OSError, MemoryError)) and not isinstance(link, MISSING) for link in links):
        return View.OUT_OF_REACH
    if any(_OUT_OF_REACH.search(text) for text in texts):
        return View.OUT_OF_REACH
    if any(_OTHER_CONFIGURATION.search(text) for text in texts):
        return View.OF_ANOTHER_CONFIGURATION
    decoding = (ValueError, LookupError, TypeError, EOFError, *MISSING)
    return View.DAMAGED if any(isinstance(link, decoding) for link in links) else View.OUT_OF_REACH


def read_together(what: str, read: Callable[[], T]) -> T:
    """What `read` returns, if it does so on every process; all must call this together.

    Args:
      what: is read, for errors: `FOLDER: step 5`.
      read: waits for no other process.

    Raises:
      DamagedError: some process found it damaged.
      CheckpointError: some process found it of another configuration, or could not reach it after several attempts.
    """
    result, error = _attempts(read)
    own = View.WHOLE if error is None else view_of(error)
    view = own
    if jax.process_count() > 1:
        view = View(int(np.max(multihost_utils.process_allgather(np.int32(own)))))
    if view == View.WHOLE:
        return result  # type: ignore[return-value]
    del result
    for link in _chain(error):
        traceback.clear_frames(link.__traceback__)  # they hold what had been read, for which there is no room twice
    reason = _reason(error) if error is not None and own == view else "as another process of this run found"
    if view == View.OUT_OF_REACH:
        raise CheckpointError(
            f"{what} is out of reach ({reason}), {len(WAITS) + 1} attempts; nothing was changed, and the same command "
            "goes on once it can be read"
        ) from error
    text = f"{what} cannot be read into this model ({reason}); is it of another configuration, or damaged?"
    raise (DamagedError if view == View.DAMAGED else CheckpointError)(text) from error


def _attempts(read: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What `read` returned, or the error of the last attempt."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=tenacity.wait_chain(*map(tenacity.wait_fixed, WAITS)),
        stop=tenacity.stop_after_attempt(len(WAITS) + 1),
        reraise=True,
    )
    try:
        return attempts(read), None
    except Exception as error:
        return None, error


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed; a file that is missing may, where it was written by another host, for a
    network's file system shows it to this host later."""
    if not isinstance(error, Exception):
        return False  # asked to end
    missing = any(isinstance(link, MISSING) or _MISSING.search(str(link)) for link in _chain(error))
    return view_of(error) == View.OUT_OF_REACH or (missing and jax.process_count() > 1)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    """One line: of a chain the first cause, which names the file; the links above it only say where it was read."""
    causes = [link for link in _chain(error) if str(link).strip()]
    if not causes:
        return type(error).__name__
    text = f"not JSON: {causes[-1]}" if isinstance(causes[-1], json.JSONDecodeError) else str(causes[-1])
    return text.strip().splitlines()[0][:300]

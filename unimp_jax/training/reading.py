"""Reading of saved data: retries transient errors, detects damage, and makes all processes agree on the outcome."""

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
"""Seconds between attempts to read what a file system or object store temporarily does not return."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message is one line."""


class DamagedError(CheckpointError):
    """Files are missing, truncated or corrupt."""


class View(enum.IntEnum):
    """Outcome of an attempt to read; among several processes the largest value counts."""

    WHOLE = 0
    DAMAGED = 1
    OF_ANOTHER_CONFIGURATION = 2
    OUT_OF_REACH = 3


MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# TensorStore raises ValueError for everything, with absl's status code in front or the system's message inside.
_OUT_OF_REACH = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|PERMISSION_DENIED|UNAUTHENTICATED|INTERNAL|"
    r"UNKNOWN): |stale file handle|connection (reset|refused|aborted|timed out)|timed out|input/output error|"
    r"temporarily unavailable|too many open files|permission denied|cannot allocate memory|transport endpoint",
    re.IGNORECASE,
)
_OTHER_CONFIGURATION = re.compile(r"Requested shape|tree structures do not match|it has no parameter")
_MISSING = re.compile(r"\bNOT_FOUND: ")


def view_of(error: BaseException) -> View:
    """Classifies an error. Only missing files or failed decoding count as damage; unknown errors do not."""
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
    """Returns the result of `read`, which must not wait for other processes, if it succeeds on every process; all must
    call this together. `what` is read, for error messages: `FOLDER: step 5`. Raises DamagedError if a process found it
    damaged, and CheckpointError if one found it to be of another configuration, or could not reach it in several
    attempts."""
    result, error = _attempts(read)
    own = View.WHOLE if error is None else view_of(error)
    view = own
    if jax.process_count() > 1:
        view = View(int(np.max(multihost_utils.process_allgather(np.int32(own)))))
    if view == View.WHOLE:
        return result  # type: ignore[return-value]
    del result
    for link in _chain(error):
        traceback.clear_frames(link.__traceback__)  # they hold data that does not fit into memory twice
    reason = _reason(error) if error is not None and own == view else "another process of this run failed to read it"
    if view == View.OUT_OF_REACH:
        raise CheckpointError(
            f"{what} could not be read in {len(WAITS) + 1} attempts ({reason}); nothing was changed, and the same "
            "command continues once it can be read"
        ) from error
    text = f"{what} cannot be read into this model ({reason}); it belongs to another configuration, or is damaged"
    raise (DamagedError if view == View.DAMAGED else CheckpointError)(text) from error


def _attempts(read: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Returns the result of `read`, or the error of the last attempt."""
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
    """Returns whether another attempt may succeed. This includes missing files if there are several processes: a
    network file system may show a file written by another host only later."""
    if not isinstance(error, Exception):
        return False  # asked to end
    missing = any(isinstance(link, MISSING) or _MISSING.search(str(link)) for link in _chain(error))
    return view_of(error) == View.OUT_OF_REACH or (missing and jax.process_count() > 1)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    """Returns one line from the first cause of a chain, which names the file; the others only say where it was read."""
    causes = [link for link in _chain(error) if str(link).strip()]
    if not causes:
        return type(error).__name__
    text = f"not JSON: {causes[-1]}" if isinstance(causes[-1], json.JSONDecodeError) else str(causes[-1])
    return text.strip().splitlines()[0][:300]

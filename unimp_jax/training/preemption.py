"""Requests to end a run: SIGTERM, which schedulers send before they take a machine away."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from unimp_jax.processes import end_together


class EndRequest(contextlib.AbstractContextManager["EndRequest"]):
    """Whether this run has been asked to end.

    As a context manager: until `listen` is called, SIGTERM ends the process at once, as usual. There is nothing to lose
    yet, and a Python handler would not run before XLA has compiled or Orbax has read, which takes minutes. After that,
    SIGTERM only sets the request.

    Any one of several processes may be asked: all agree on the step at which they end through JAX's preemption service,
    whose own SIGTERM handler is not active before `listen` is called (see `unimp_jax.processes.join`).
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None
        self._together = jax.process_count() > 1
        self._listens = False

    def listen(self) -> None:
        """Starts handling SIGTERM as a request, because from now on there is progress to save."""
        if self._listens or threading.current_thread() is not threading.main_thread():
            return
        self._listens = True
        if self._together:
            end_together()
        else:
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def at(self, step: int) -> bool:
        """Returns whether to end before this step; all processes must call it before each step, with the same steps."""
        if self._together:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @contextlib.contextmanager
    def ends_after(self, save: Callable[[], None]) -> Iterator[None]:
        """Wraps long work between two steps: if SIGTERM arrives, calls `save` and ends the process, with 0, or with 2
        if saving fails. Another thread calls `save`, because the thread that waits for XLA runs no signal handlers.
        Several processes continue instead, because they can agree between steps only."""
        if not self._listens or self._together:
            yield
            return
        read, write = os.pipe()
        os.set_blocking(write, False)
        passed, over = threading.Lock(), False

        def wait() -> None:
            signals = b""
            while signals not in (bytes([signal.SIGTERM]), b"\0"):
                signals = os.read(read, 1)
            with passed:
                if not over:
                    _end(save)

        thread = threading.Thread(target=wait, name="asked to end", daemon=True)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        thread.start()
        if self._asked:  # before the thread started waiting
            os.write(write, bytes([signal.SIGTERM]))
        try:
            yield
        finally:
            with passed:  # never released by a thread that ends the process
                over = True
            signal.set_wakeup_fd(before)
            os.write(write, b"\0")
            thread.join()
            os.close(read)
            os.close(write)

    def __exit__(self, *_: object) -> None:
        if self._listens and not self._together:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: object) -> None:
        self._asked = True


def print_saved(step: int) -> None:
    """Reports that a run ends on request after a saved step; 0: before the first step."""
    saved = f"step {step} is saved" if step else "no step was completed"
    print(f"asked to end: {saved}; the same command continues", flush=True)


def _end(save: Callable[[], None]) -> None:
    try:
        save()
    except Exception as error:
        if os.environ.get("UNIMP_TRACEBACK"):
            traceback.print_exc()
        print(f"unimp: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    os._exit(0)

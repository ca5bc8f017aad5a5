"""Downloads small files within limits of rate, time and size, and classifies failures."""

import contextlib
import dataclasses
import threading
import time
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

BUSY = (429, 500, 502, 503, 504)
GONE = (404, 410)
PIECE = 2**16


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of requests and of the size of files."""

    connections: int = 8
    """Concurrent connections, in total and thus to one host."""
    per_second: float = 20.0
    """Requests per second in total, including retries."""
    retries: int = 4
    """Retries after the first attempt, if a server is busy or a connection fails."""
    backoff: float = 0.5
    """Seconds before the third attempt (the second follows at once), doubled for each further one; a delay given by the
    server takes precedence."""
    longest_wait: float = 60.0
    """Maximum seconds between attempts; if a server asks for more, there is no further attempt."""
    seconds: float = 30.0
    """Seconds to wait for an answer, and from then on for the complete file."""
    megabytes: float = 10.0
    """Maximum size of a file."""


class Unusable(Exception):
    """A permanent failure: the requested file does not exist or cannot be used."""


class Unavailable(Exception):
    """A temporary failure: the requested file is currently not available."""


class Fetcher(contextlib.AbstractContextManager["Fetcher"]):
    """Downloads files; can be used from several threads."""

    def __init__(self, limits: Limits):
        self._limits, self._lock, self._next = limits, threading.Lock(), 0.0
        self._retry = urllib3.Retry(limits.retries, backoff_factor=limits.backoff, backoff_max=limits.longest_wait)
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": "unimp_jax", "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=limits.connections))

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(self, url: str) -> bytes:
        """Downloads a file; raises Unusable if the URL is invalid, or the file does not exist or is too large, and
        Unavailable, after all retries, if there is no connection, the server is busy or refuses, or the file is
        truncated."""
        retry = self._retry
        while True:
            wait: float | None = None
            self._wait_for_turn()
            try:
                with self._session.get(url, stream=True, timeout=self._limits.seconds) as response:
                    status = response.status_code
                    if status == 200:
                        return self._body(response.raw)
                    fault = f"status {status}"
                    if status in GONE:
                        raise Unusable(fault)
                    wait = retry.get_retry_after(response.raw)
                if status not in BUSY or (wait or 0) > self._limits.longest_wait:
                    raise Unavailable(fault)
            except ValueError as error:  # an invalid URL
                raise Unusable(str(error)) from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                cause = getattr(error.args[0] if error.args else None, "reason", None) or error
                fault = " ".join(str(cause).split())[:200]
            try:
                retry = retry.increment(error=Unavailable(fault))
            except urllib3.exceptions.MaxRetryError as error:
                raise Unavailable(fault) from error
            if wait:
                time.sleep(wait)
            else:
                retry.sleep()

    def _body(self, raw: Any) -> bytes:
        body, until = bytearray(), time.monotonic() + self._limits.seconds
        while piece := raw.read1(PIECE, decode_content=False):
            body += piece
            if len(body) > self._limits.megabytes * 2**20:
                raise Unusable(f"larger than {self._limits.megabytes:g} MiB")
            if time.monotonic() > until:
                raise Unavailable(f"incomplete after {self._limits.seconds:g} s")
        return bytes(body)

    def _wait_for_turn(self) -> None:
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 1 / self._limits.per_second
        time.sleep(max(0.0, turn - time.monotonic()))

"""An S3 server in this process, whose requests a test may count, delay or let fail."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import requests

KEYS = {"AWS_ACCESS_KEY_ID": "of a test", "AWS_SECRET_ACCESS_KEY": "of a test", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "s3://bucket"


class Server:
    """moto's S3.

    Attributes:
      fault: (method, path) -> an HTTP status in place of an answer, or None.
      requests: (method, path) of all.
    """

    def __init__(self) -> None:
        server = pytest.importorskip("moto.server", reason="moto is not installed: pip install '.[dev]'")
        pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
        from werkzeug.serving import make_server

        self.fault: Callable[[str, str], int | None] = lambda *_: None
        self.requests: list[tuple[str, str]] = []
        self._app = server.DomainDispatcherApplication(server.create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ, start_response):
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(request)
        if (status := self.fault(*request)) is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} for a test", [("Content-Length", "0")])
            return []
        return self._app(environ, start_response)


@functools.cache
def started() -> Server:
    """The one of this process: libraries remember where they found it."""
    return Server()


@contextmanager
def running() -> Iterator[Server]:
    """With a bucket, and the environment by which every program finds it; nothing is kept from one to the next."""
    server = started()
    import fsspec

    server.fault = lambda *_: None
    server.requests.clear()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(name, value)
        requests.post(f"{server.url}/moto-api/reset", timeout=60)
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
        yield server
        fsspec.filesystem("s3").clear_instance_cache()


def environment(server: Server) -> dict[str, str]:
    """Of a process that is to find the server."""
    return {**os.environ, **KEYS, "AWS_ENDPOINT_URL": server.url}

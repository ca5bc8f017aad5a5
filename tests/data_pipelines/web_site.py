"""A web server on this machine that is slow, busy, wrong, or hangs up, as a test says."""

import http.server
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from data_pipelines.sources.fetching import Limits

LIMITS = Limits(per_second=1000, backoff=0.01, seconds=2, retries=2)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def sends(body: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None, length: int = -1) -> Answer:
    """Answers with `body`, of which the header says that it is `length` long."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length < 0 else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = length >= 0

    return answer


def after(seconds: float, then: Answer) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        then(handler)

    return answer


def drips(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A byte every hundredth of a second, far longer than anybody should wait."""
    sends(length=10_000)(handler)
    for _ in range(10_000):
        handler.wfile.write(b".")
        handler.wfile.flush()
        time.sleep(0.01)


class Site:
    """What a server answers, by path, the first time, the second time, …, and then as the last time."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)
        self.busiest = self._at_work = 0
        self._lock = threading.Lock()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with site._lock:
                    number = site.asked[self.path]
                    site.asked[self.path] += 1
                    site.times[self.path].append(time.monotonic())
                    site._at_work += 1
                    site.busiest = max(site.busiest, site._at_work)
                try:
                    answers = site.answers.get(self.path, [sends(status=404)])
                    answers[min(number, len(answers) - 1)](self)
                except OSError:  # the other side has heard enough
                    self.close_connection = True
                finally:
                    with site._lock:
                        site._at_work -= 1

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def url(self, path: str, *answers: Answer) -> str:
        if answers:
            self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    @property
    def requests(self) -> int:
        return self.asked.total()


def cut(body: bytes) -> Answer:
    return sends(body[: len(body) // 2], length=len(body))

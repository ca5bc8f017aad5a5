"""Images by URL, from a server on this machine that is slow, busy, wrong, or hangs up."""

import dataclasses
import http.server
import io
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items
from data_pipelines.sources import fetched_images
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.fetched_images import FetchedImages
from data_pipelines.sources.fetching import Fetcher, Limits, Unavailable, Unusable
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines.amazon_files import product_2018, review_2018, write
from tests.data_pipelines.small import image

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


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield site
    site.server.shutdown()
    site.server.server_close()


# --- one file --------------------------------------------------------------------------------------------------------


def get(url: str, **changed: Any) -> bytes:
    with Fetcher(dataclasses.replace(LIMITS, **changed)) as fetcher:
        return fetcher.get(url)


def cut(body: bytes) -> Answer:
    return sends(body[: len(body) // 2], length=len(body))


@pytest.mark.parametrize(
    "before",
    [
        sends(status=500),
        sends(b"busy", status=503),
        sends(status=429, headers={"Retry-After": "0"}),
        sends(status=503, headers={"Retry-After": "soon"}),
        cut(image(1)),
        after(0.5, sends(b"late")),
    ],
)
def test_what_may_be_otherwise_next_time_is_asked_for_again(site: Site, before: Answer) -> None:
    url = site.url("/a.jpg", before, before, sends(image(1)))
    assert get(url, seconds=0.2) == image(1)
    assert site.requests == 3


@pytest.mark.parametrize(
    ("answer", "seconds", "message"),
    [
        (sends(status=503), 2, "status 503"),
        (cut(bytes(1000)), 2, "IncompleteRead"),
        (after(0.5, sends()), 0.1, "timed out"),
    ],
)
def test_retries_end(site: Site, answer: Answer, seconds: float, message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        get(site.url("/a.jpg", answer), seconds=seconds)
    assert site.requests == 1 + LIMITS.retries


def test_a_file_has_so_long_to_be_whole(site: Site) -> None:
    with pytest.raises(Unavailable, match=r"not whole after 0.2 s"):
        get(site.url("/a.jpg", drips), seconds=0.2)
    assert site.requests == 1


def test_without_a_server_it_is_unavailable(site: Site) -> None:
    url = site.url("/a.jpg")
    site.server.server_close()
    with pytest.raises(Unavailable, match="refused"):
        get(url)


@pytest.mark.parametrize("status", [400, 401, 403, 418])
def test_a_refusal_is_not_argued_with(site: Site, status: int) -> None:
    with pytest.raises(Unavailable, match=f"status {status}"):
        get(site.url("/a.jpg", sends(status=status)))
    assert site.requests == 1


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_is_unusable(site: Site, status: int) -> None:
    with pytest.raises(Unusable, match=f"status {status}"):
        get(site.url("/a.jpg", sends(status=status)))
    assert site.requests == 1


@pytest.mark.parametrize("url", ["", "a.jpg", "ftp://x/a.jpg", "file:///etc/passwd", "http://", "http://[::1", "//x/y"])
def test_what_is_no_address_of_the_web_is_unusable(url: str) -> None:
    with pytest.raises(Unusable):
        get(url)


def test_a_server_says_when_to_come_again(site: Site) -> None:
    url = site.url("/a.jpg", sends(status=429, headers={"Retry-After": "1"}), sends(b"here"))
    assert get(url) == b"here"
    first, second = site.times["/a.jpg"]
    assert 1 <= second - first < 2


def test_a_server_that_says_much_later_is_left_alone(site: Site) -> None:
    with pytest.raises(Unavailable, match="status 503"):
        get(site.url("/a.jpg", sends(status=503, headers={"Retry-After": "3600"})))
    assert site.requests == 1


@pytest.mark.parametrize("length", [-1, 10_000_000])
def test_no_more_is_read_than_the_limit(site: Site, length: int) -> None:
    url = site.url("/a.jpg", sends(bytes(300_000), length=length), sends(b"not asked for again"))
    with pytest.raises(Unusable, match=r"larger than 0.125 MiB"):
        get(url, megabytes=0.125)
    assert get(site.url("/b.jpg", sends(bytes(2**17))), megabytes=0.125) == bytes(2**17)
    assert site.asked["/a.jpg"] == 1


def test_a_moved_file_is_followed(site: Site) -> None:
    url = site.url("/old.jpg", sends(status=302, headers={"Location": "/new.jpg"}))
    site.url("/new.jpg", sends(b"here"))
    assert get(url) == b"here"


# --- a folder of them ------------------------------------------------------------------------------------------------


def images(folder: Path, faults: Faults | None = None, **changed: Any) -> FetchedImages:
    return FetchedImages(folder, faults or Faults(), dataclasses.replace(LIMITS, **changed))


def pixel() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (1, 1)).save(buffer, "GIF")
    return buffer.getvalue()


def test_images_are_fetched_once_and_failures_are_reported(site: Site, tmp_path: Path) -> None:
    urls = {
        "good": site.url("/good", sends(image(1))),
        "late": site.url("/late", sends(status=500), sends(image(2))),
        "cut": site.url("/cut", cut(image(3)), sends(image(3))),
        "gone": site.url("/gone"),
        "page": site.url("/page", sends(b"<html>no image</html>")),
        "half": site.url("/half", sends(image(4)[:-30])),
        "pixel": site.url("/pixel", sends(pixel())),
        "large": site.url("/large", sends(bytes(200_000))),
        "refused": site.url("/refused", sends(status=403)),
    }
    there = {"good": image(1), "late": image(2), "cut": image(3)}
    for run in range(2):
        faults = Faults()
        fetched = images(tmp_path / "images", faults, megabytes=0.125)
        before = site.asked.copy()
        fetched.fetch(urls)
        assert {item: fetched.read(item) for item in urls} == dict.fromkeys(urls, b"") | there
        told = {fault.partition(":")[0]: fault for fault in faults.images}
        assert list(told) == [item for item in urls if item not in there]
        assert urls["gone"] in told["gone"]
        for item, reason in [
            ("gone", "status 404"),
            ("page", "not an image: cannot identify"),
            ("half", "not an image: "),
            ("pixel", "not an image: a single pixel"),
            ("large", r"larger than 0.125 MiB"),
            ("refused", "status 403"),
        ]:
            assert reason in told[item]
        assert site.asked - before == ({"/refused": 1} if run else Counter(site.asked))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "cut.jpg",
        "failed.jsonl",
        "good.jpg",
        "late.jpg",
    ]


def test_a_failure_is_of_an_address(site: Site, tmp_path: Path) -> None:
    images(tmp_path).fetch({"a": site.url("/gone"), "b": site.url("/gone")})
    fetched = images(tmp_path)
    fetched.fetch({"a": site.url("/moved", sends(image(1))), "b": site.url("/gone")})
    assert fetched.read("a") == image(1)
    assert site.asked == {"/gone": 2, "/moved": 1}


def test_a_list_of_failures_that_was_cut_off_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    urls = {"a": site.url("/a"), "b": site.url("/b")}
    images(tmp_path).fetch(urls)
    path = tmp_path / "failed.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / ".c.jpg.partial").write_bytes(image(1)[:50])
    urls["c"] = site.url("/c", sends(image(1)))
    images(tmp_path).fetch(urls)
    assert site.asked == {"/a": 1, "/b": 2, "/c": 1}
    images(tmp_path).fetch(urls)
    assert site.requests == 4
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {"item": "b", "url": urls["b"], "reason": "status 404"}


def test_so_many_at_a_time_and_no_more(site: Site, tmp_path: Path) -> None:
    urls = {str(number): site.url(f"/{number}", after(0.05, sends(image(number)))) for number in range(12)}
    images(tmp_path, connections=3).fetch(urls)
    assert site.busiest == 3
    assert site.requests == len(list(tmp_path.glob("*.jpg"))) == 12


def test_so_many_a_second_and_no_more(site: Site, tmp_path: Path) -> None:
    urls = {str(number): site.url(f"/{number}", sends(status=500), sends(image(number))) for number in range(4)}
    images(tmp_path, per_second=20).fetch(urls)
    times = sorted(time for times in site.times.values() for time in times)
    assert len(times) == 8
    assert times[-1] - times[0] > 6 / 20


def test_a_site_that_fails_throughout_is_left_alone_and_gone_on_with_later(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched_images, "GIVE_UP", 4)
    urls = {str(number): site.url(f"/{number}", sends(image(number))) for number in range(20)}
    for number in range(2, 20):
        site.url(f"/{number}", sends(status=403))
    with pytest.raises(DataError, match=r"^4 images one after another .* status 403; what was fetched stays") as told:
        images(tmp_path, connections=1).fetch(urls)
    assert len(str(told.value).splitlines()) == 1
    assert 6 <= site.requests < 20
    for number in range(2, 20):
        site.url(f"/{number}", sends(image(number)))
    asked = site.asked.copy()
    fetched = images(tmp_path)
    fetched.fetch(urls)
    assert [fetched.read(item) for item in urls] == [image(number) for number in range(20)]
    assert site.asked["/0"] == asked["/0"] == 1


def test_without_a_folder_that_is_reported_once(tmp_path: Path) -> None:
    faults = Faults()
    stored = FetchedImages(tmp_path / "images", faults)
    assert stored.read("a") == stored.read("b") == b""
    assert faults.images == [f"{tmp_path / 'images'} does not exist: no item has an image"]


def test_images_put_there_by_hand_are_tried(tmp_path: Path) -> None:
    faults = Faults()
    (tmp_path / "good.jpg").write_bytes(image(1))
    (tmp_path / "bad.jpg").write_bytes(image(1)[:-30])
    stored = FetchedImages(tmp_path, faults)
    assert [stored.read(item) for item in ("good", "bad", "none")] == [image(1), b"", b""]
    assert faults.images[0].startswith("bad.jpg is broken (")
    assert faults.images[1] == "none: none.jpg is missing"


def test_an_item_cannot_name_a_file_elsewhere(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    fetched = images(folder)
    fetched.fetch({"../../x": site.url("/x", sends(image(1))), "..": site.url("/y", sends(image(2)))})
    assert fetched.read("../../x") == image(1)
    assert fetched.read("..") == image(2)
    assert {path.parent for path in tmp_path.rglob("*.jpg")} == {folder}


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file")
    with pytest.raises(DataError, match="images cannot be made"):
        images(tmp_path / "images").fetch({})


@pytest.mark.parametrize("name", ["a.png", "a.JPEG", "a.webp"])
def test_images_of_other_endings_are_there(site: Site, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(image(1))
    (tmp_path / f"._{name}").write_bytes(b"litter")
    fetched = images(tmp_path)
    fetched.fetch({"a": site.url("/a", sends(image(2)))})
    assert fetched.read("a") == image(1)
    assert site.requests == 0


@pytest.mark.parametrize("error", [AttributeError("a"), RuntimeError("two\nlines"), MemoryError(), OverflowError("x")])
def test_whatever_an_answer_does_costs_one_image(
    site: Site, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Fetcher.get

    def get(self: Fetcher, url: str) -> bytes:
        if url.endswith("/bad"):
            raise error
        return whole(self, url)

    monkeypatch.setattr(Fetcher, "get", get)
    faults = Faults()
    fetched = images(tmp_path, faults)
    fetched.fetch({"bad": site.url("/bad"), "good": site.url("/good", sends(image(1)))})
    assert [fetched.read("bad"), fetched.read("good")] == [b"", image(1)]
    assert faults.images == [f"bad: {site.url('/bad')}: {' '.join(str(error).split()) or 'MemoryError'}"]


def test_a_name_too_long_for_a_file_costs_one_image(site: Site, tmp_path: Path) -> None:
    fetched, long = images(tmp_path), "é" * 100
    fetched.fetch({long: site.url("/a", sends(image(1))), "b": site.url("/b", sends(image(2)))})
    assert [fetched.read(long), fetched.read("b")] == [b"", image(2)]


@pytest.mark.parametrize("function", ["pathlib.Path.write_bytes", "os.replace"])
def test_a_full_disk_ends_it_in_one_line_and_what_was_fetched_stays(
    site: Site, tmp_path: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path).fetch({"a": site.url("/a", sends(image(1)))})

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(function, no_room)
        with pytest.raises(DataError, match=rf"^{tmp_path}: images cannot be written \(No space left on device\)"):
            images(tmp_path).fetch({"a": site.url("/a"), "b": site.url("/b", sends(image(2)))})
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_a_source_is_prepared_with_its_images_and_again_without_a_request(site: Site, tmp_path: Path) -> None:
    urls = {"B1": site.url("/1", sends(status=503), sends(image(1))), "B2": site.url("/2")}
    products = [product_2018(item, imageURLHighRes=[url]) for item, url in urls.items()]
    reviews = [review_2018("U1", item) for item in ("B1", "B2", "B3")]
    folder = write(tmp_path / "source", "amazon_2018", reviews, products)
    for fetch_images in (True, True, False):
        selection = SourceSelection(user_core=1, item_core=1, fetch_images=fetch_images)
        prepared = prepare("amazon_2018", tmp_path / "data", folder, selection=selection)
        assert (prepared.items, prepared.images) == (3, 1)
        assert prepared.bad_images == [f"B2: {urls['B2']}: status 404", "B3: B3.jpg is missing"]
        assert [item.image for item in read_items("amazon_2018", tmp_path / "data")] == [image(1), b"", b""]
        assert site.asked == {"/1": 2, "/2": 1}

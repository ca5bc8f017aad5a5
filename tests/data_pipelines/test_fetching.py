"""Files by URL, from a server on this machine that is slow, busy, wrong, or hangs up."""

import dataclasses
from typing import Any

import pytest

from data_pipelines.sources.fetching import Fetcher, Unavailable, Unusable
from tests.data_pipelines.small import image
from tests.data_pipelines.web_site import LIMITS, Answer, Site, after, cut, drips, sends


def get(url: str, **changed: Any) -> bytes:
    with Fetcher(dataclasses.replace(LIMITS, **changed)) as fetcher:
        return fetcher.get(url)


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
    with pytest.raises(Unavailable, match=r"incomplete after 0.2 s"):
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

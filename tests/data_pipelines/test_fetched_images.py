"""Images by URL, fetched once into a folder."""

import dataclasses
import io
import json
from collections import Counter
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
from data_pipelines.sources.fetching import Fetcher
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines.amazon_files import product_2018, review_2018, write
from tests.data_pipelines.small import image
from tests.data_pipelines.web_site import LIMITS, Site, after, cut, sends


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
            ("page", "not an image: unknown image format"),
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
    with pytest.raises(DataError, match=r"^4 images in a row .* status 403; fetched images are kept") as told:
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
    assert faults.images == [f"{tmp_path / 'images'} does not exist, so no item has an image"]


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
    with pytest.raises(DataError, match="images cannot be created"):
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

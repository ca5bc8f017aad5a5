"""Images of a source: archives and folders of them, and what stands for one that cannot be decoded."""

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.images import ImageConfig, ImageStore
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.images import StoredImages
from experiments.report.samples import posters
from tests.data_pipelines.small import image

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def test_an_image_that_cannot_be_decoded_is_black_and_reported_and_ends_no_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ImageStore([image(1), b"none"].__getitem__, 8, ImageConfig())
    with caplog.at_level(logging.WARNING):
        assert store[0].any()
        assert not store[1].any()
        assert not store[1].any()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("item 1: not a readable image (unknown image format")


def test_an_image_whose_record_cannot_be_read_now_is_not_black_from_then_on() -> None:
    answers: list[Any] = [DataError("record 0 cannot be read (Too many open files)"), image(1)]

    def read(item: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    store = ImageStore(read, 8, ImageConfig())
    with pytest.raises(DataError, match="Too many open files"):
        store[0]
    assert store[0].any()


def test_a_report_does_without_an_image_that_cannot_be_decoded() -> None:
    class Read:
        has_image = (True, True, False)
        read_image = staticmethod([image(1), b"none", b""].__getitem__)

    read: Any = Read()
    found = posters({2, 1, 0}, read)
    assert list(found) == [0]
    assert found[0].startswith("data:image/jpeg;base64,")


# --- archives and folders of them ------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, encoded in members.items():
            packed.writestr(zipfile.ZipInfo(name), encoded)
    return path


def files(folder: Path, members: dict[str, bytes]) -> Path:
    for name, encoded in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded)
    return folder


def patched(path: Path, name: str, offset: int, value: bytes) -> None:
    """Overwrites bytes of a member's two headers; `offset` as in the header at the member."""
    whole = bytearray(path.read_bytes())
    places = [place for place in range(len(whole)) if whole[place : place + 4] in (b"PK\3\4", b"PK\1\2")]
    for place in places:
        central = whole[place : place + 4] == b"PK\1\2"
        start, at = place + (46 if central else 30), place + offset + (2 if central else 0)
        if whole[start : start + len(name)] == name.encode():
            whole[at : at + len(value)] = value
    path.write_bytes(whole)


FLAGS, METHOD, SIZE = 6, 8, 22


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (FLAGS, b"\x01\0", "encrypted"),
        (FLAGS, b"\x41\0", "encrypt"),
        (FLAGS, b"\x20\0", "patched"),
        (METHOD, b"\x09\0", "compression"),
        (METHOD, b"\x63\0", "compression"),
        (METHOD, b"\x08\0", "incorrect header|invalid|decompress"),
        (METHOD, b"\x0e\0", "."),
        (SIZE, b"\xff\xff\xff\x7f", "2,147,483,647 bytes; at most 67,108,864"),
        (SIZE, b"\x05\0\0\0", "CRC|truncated|unknown image format"),
    ],
)
def test_whatever_an_archive_raises_costs_one_image(tmp_path: Path, offset: int, value: bytes, reason: str) -> None:
    path = archive(tmp_path / "posters.zip", {f"{number}.jpg": image(number) for number in (1, 2, 3)})
    patched(path, "2.jpg", offset, value)
    faults = Faults()
    stored = StoredImages(tmp_path / "posters", faults)
    assert [stored.read(f"{number}.jpg") for number in (1, 2, 3)] == [image(1), b"", image(3)]
    (told,) = faults.images
    assert told.startswith("posters.zip: 2.jpg is broken (")
    assert re.search(reason, told), told


NAMES = {
    "010/1.JPG": "010/1.jpg",
    "010\\2.jpg": "010/2.jpg",
    "images\\010\\3.Jpeg": "010/3.jpg",
    "images/010/4.png": "010/4.jpg",
    "5.webp": "5.jpg",
    "./6.gif": "6.jpg",
    "7.bmp": "7.jpg",
    "8.TIFF": "8.jpg",
    "9.tif": "9.jpg",
}
"""As they are stored, and as they are asked for."""
LITTER = ("__MACOSX/images/010/._1.jpg", "__MACOSX/10.jpg", "010/._11.jpg", ".12.jpg", "13.txt", "14", "15.jpg.txt")


@pytest.mark.parametrize("packed", [True, False])
def test_names_are_found_whatever_made_them(tmp_path: Path, packed: bool) -> None:
    members = {name: image(number) for number, name in enumerate(NAMES)}
    members |= dict.fromkeys(LITTER, b"litter")
    if packed:
        archive(tmp_path / "images.zip", members)
    else:
        files(tmp_path / "images", members)
    faults = Faults()
    stored = StoredImages(tmp_path / "images", faults)
    assert [stored.read(name) for name in NAMES.values()] == [image(number) for number in range(len(NAMES))]
    assert faults.images == []
    for number in (10, 11, 12, 13, 14, 15):
        assert stored.read(f"{number}.jpg", f"010/{number}.jpg") == b""
    assert len(faults.images) == 6


def test_a_jpeg_comes_before_others_of_its_name_and_the_outer_before_the_inner(tmp_path: Path) -> None:
    members = {"1.png": image(1), "1.jpg": image(2), "posters/2.jpg": image(3), "2.jpg": image(4)}
    archive(tmp_path / "posters.zip", members)
    stored = StoredImages(tmp_path / "posters", Faults())
    assert [stored.read("1.jpg"), stored.read("2.jpg")] == [image(2), image(4)]


def test_names_are_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path / "images", {f"01{number}/1.jpg": image(number) for number in range(3)})
    stored = StoredImages(tmp_path / "images", Faults())
    monkeypatch.setattr("os.walk", lambda *_, **__: pytest.fail("listed again"))
    monkeypatch.setattr("os.scandir", lambda *_: pytest.fail("listed again"))
    assert [stored.read(f"01{number}/1.jpg") for number in range(3)] == [image(number) for number in range(3)]


def test_a_file_that_cannot_be_read_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files(tmp_path / "posters", {"1.jpg": image(1), "2.jpg": image(2), "4.jpg": image(4)})
    (folder / "3.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "4.jpg").unlink()
    os.mkfifo(folder / "4.jpg")
    whole = Path.open

    def refuses(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "2.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuses)
    faults = Faults()
    stored = StoredImages(folder, faults)
    assert [stored.read(f"{number}.jpg") for number in (1, 2, 3, 4)] == [image(1), b"", b"", b""]
    assert faults.images == [
        "posters: 2.jpg is broken (Permission denied)",
        "posters: 3.jpg is broken (it is not a file)",
        "posters: 4.jpg is broken (it is not a file)",
    ]


def test_a_folder_in_a_folder_that_cannot_be_listed_costs_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files(tmp_path / "images", {"010/1.jpg": image(1), "011/2.jpg": image(2)})
    scandir = os.scandir

    def refuses(path: Any) -> Any:
        if str(path).endswith("010"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuses)
    faults = Faults()
    stored = StoredImages(folder, faults)
    assert [stored.read("010/1.jpg"), stored.read("011/2.jpg")] == [b"", image(2)]
    assert faults.images == [f"{folder / '010'} cannot be listed (Permission denied)", "images: 010/1.jpg is missing"]


def test_a_folder_in_itself_ends(tmp_path: Path) -> None:
    folder = files(tmp_path / "posters", {"1.jpg": image(1)})
    (folder / "again").symlink_to(folder)
    assert StoredImages(folder, Faults()).read("1.jpg") == image(1)


def test_an_archive_without_images_is_reported_once(tmp_path: Path) -> None:
    path = archive(tmp_path / "posters.zip", {"1.txt": b"", "__MACOSX/._1.jpg": b""})
    faults = Faults()
    stored = StoredImages(tmp_path / "posters", faults)
    assert stored.read("1.jpg") == stored.read("2.jpg") == b""
    assert faults.images == [f"{path} contains no images, so no item has one"]


@pytest.mark.parametrize("whole", [b"", b"Rar!\x1a\x07\0", b"<html>", b"PK\x05\x06" + bytes(3)])
def test_what_is_no_archive_is_refused(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "posters.zip").write_bytes(whole)
    with pytest.raises(DataError, match=r"posters.zip is not a complete zip archive .*; fetch it again"):
        StoredImages(tmp_path / "posters", Faults())


@pytest.mark.parametrize("error", [NotImplementedError("several disks"), MemoryError(), OverflowError("x"), OSError()])
def test_whatever_opening_an_archive_raises_is_refused(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: object) -> None:
        raise error

    archive(tmp_path / "posters.zip", {"1.jpg": image(1)})
    monkeypatch.setattr(zipfile, "ZipFile", raises)
    with pytest.raises(DataError, match=r"posters.zip (is not a complete zip archive|cannot be read)"):
        StoredImages(tmp_path / "posters", Faults())


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_costs_images(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    members = {f"{number}.jpg": image(number, 4) for number in (1, 2)}
    whole = bytearray(archive(folder / "posters.zip", members, compression=zipfile.ZIP_DEFLATED).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    (folder / "posters.zip").write_bytes(whole)
    try:
        stored = StoredImages(folder / "posters", Faults())
    except DataError as error:
        assert "posters.zip" in str(error)  # noqa: PT017
        return
    for number in (1, 2):
        assert stored.read(f"{number}.jpg") in (b"", image(number, 4))

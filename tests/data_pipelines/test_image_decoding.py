"""What an image looks like once it is decoded, by its pixels, and what of images is refused."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_pipelines import image_decoding
from data_pipelines.errors import DataError
from data_pipelines.image_decoding import decode_image
from data_pipelines.images import decode
from tests.data_pipelines.small import image

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(encoded: bytes) -> np.ndarray:
    opened = decode_image(encoded)
    assert opened.mode == "RGB"
    return np.asarray(opened)


def grey(encoded: bytes) -> np.ndarray:
    seen = pixels(encoded)
    assert (seen == seen[..., :1]).all()
    return seen[..., 0]


def red_above_blue() -> Image.Image:
    """40 wide, 60 high."""
    image = Image.new("RGB", (40, 60), RED)
    image.paste(BLUE, (0, 30, 40, 60))
    return image


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: `rows` with a filter byte each."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


# --- as users see it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_each_format_is_decoded(kind: str) -> None:
    found = pixels(saved(Image.new("RGB", (20, 10), (200, 40, 40)), kind))
    assert found.shape == (10, 20, 3)
    assert np.abs(found.astype(int) - (200, 40, 40)).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_greys_of_16_bits_are_scaled(kind: str) -> None:
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(grey(saved(Image.fromarray(deep), kind)), RAMP)
    assert decode(saved(Image.fromarray(deep), kind), 16, "crop").tolist() == np.stack([RAMP] * 3, -1).tolist()


def test_colours_of_16_bits_are_scaled() -> None:
    rows = b"\0" + struct.pack(">6H", 0xFFFF, 0x80FF, 0, 0x1234, 0, 0xFFFF)
    assert pixels(png(2, 1, 16, 2, rows)).tolist() == [[[255, 0x80, 0], [0x12, 0, 255]]]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (RAMP.astype(np.int32), RAMP),
        (RAMP.astype(np.int32) * 257, RAMP),
        (RAMP.astype(np.int32) * 2**20, RAMP),
        (RAMP.astype(np.float32) / 255, RAMP),
        (RAMP.astype(np.float32), RAMP),
        (RAMP.astype(np.float32) * 257, RAMP),
        (RAMP.astype(np.float32) - 128, RAMP),
        (np.where(RAMP > 127, np.float32(3e38), np.float32(-3e38)), np.where(RAMP > 127, 255, 0)),
        (np.full((16, 16), np.float32(np.nan)), RAMP * 0),
        (np.where(RAMP == 7, np.float32(np.inf), RAMP.astype(np.float32)), np.where(RAMP == 7, 0, RAMP)),
        (np.zeros((16, 16), np.int32), RAMP * 0),
    ],
)
def test_greys_of_32_bits_are_scaled(values: np.ndarray, wanted: np.ndarray) -> None:
    found = grey(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_greys_of_16_bits_whose_white_is_zero() -> None:
    deep = RAMP.astype(np.uint16) * 257
    whole = bytearray(saved(Image.fromarray(deep), "TIFF"))
    entry = struct.pack("<HHI", image_decoding.PHOTOMETRIC, 3, 1)
    assert whole.count(entry) == 1
    whole[whole.index(entry) + 8] = 0
    np.testing.assert_array_equal(grey(bytes(whole)), 255 - RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_turned_as_its_camera_says(kind: str, orientation: int) -> None:
    upright = red_above_blue()
    back = {6: 8, 8: 6}.get(orientation, orientation)
    way = image_decoding.UPRIGHT.get(back)
    stored = upright if way is None else upright.transpose(way)
    exif = Image.Exif()
    exif[image_decoding.ORIENTATION] = orientation
    found = decode_image(saved(stored, kind, exif=exif))
    assert found.size == (40, 60)
    assert np.abs(np.asarray(found, int)[:24] - RED).max() <= 8
    assert np.abs(np.asarray(found, int)[36:] - BLUE).max() <= 8


def test_damaged_exif_costs_nothing() -> None:
    assert grey(saved(Image.fromarray(RAMP), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).tolist() == RAMP.tolist()


def half(mode: str, seen: Any, hidden: Any) -> Image.Image:
    """2 x 1."""
    image = Image.new(mode, (2, 1), seen)
    image.putpixel((1, 0), hidden)
    return image


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE, *BLACK])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("encoded", "left"),
    [
        (saved(half("RGBA", (*RED, 255), (*BLUE, 0))), RED),
        (saved(half("RGBA", (*RED, 255), (*BLUE, 0)), "WEBP", lossless=True, exact=True), RED),
        (saved(half("RGBA", (*RED, 255), (*BLUE, 0)), "TIFF"), RED),
        (saved(half("LA", (50, 255), (0, 0))), (50, 50, 50)),
        (saved(palette(), transparency=1), RED),
        (saved(palette(), transparency=b"\xff\0"), RED),
        (saved(palette(), "GIF", transparency=1), RED),
        (saved(half("RGB", RED, BLUE), transparency=BLUE), RED),
        (saved(half("L", 50, 0), transparency=0), (50, 50, 50)),
        (png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0xFFFF, 0, 0, 0, 0, 0xFF34), (b"tRNS", b"\0\0\0\0\xff\x34")), RED),
        (png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 50 << 8, 7), (b"tRNS", b"\0\x07")), (50, 50, 50)),
        (png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 50 << 8, 0xFFFF, 7, 0)), (50, 50, 50)),
    ],
)  # fmt: skip
def test_what_is_transparent_lies_on_white(encoded: bytes, left: tuple[int, ...]) -> None:
    assert pixels(encoded).tolist() == [[list(left), list(WHITE)]]


def test_half_transparent_is_half_white() -> None:
    assert pixels(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))).tolist() == [[[255, 127, 127]]]


def test_printing_colours() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):  # Pillow writes a JPEG as Adobe does, inverted
        assert np.abs(pixels(saved(cyan, kind)).astype(int) - (0, 255, 255)).max() <= 2
    assert b"Adobe" in saved(cyan, "JPEG")


def test_palettes_and_single_bits_and_laboratory_colours() -> None:
    assert pixels(saved(palette())).tolist() == [[list(RED), list(BLUE)]]
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        assert pixels(saved(half("1", 0, 1), kind)).tolist() == [[list(BLACK), list(WHITE)]]
    light = saved(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF")
    assert pixels(light).min() >= 253
    assert pixels(saved(Image.new("LAB", (2, 2), (0, 128, 128)), "TIFF")).max() <= 2
    red = pixels(saved(Image.new("LAB", (2, 2), (136, 128 + 80, 128 + 67)), "TIFF"))[0, 0]
    assert red[0] > 240
    assert red[1:].max() < 40


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_it_is_the_first(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, BLACK)]
    moving = saved(Image.new("RGB", (4, 4), RED), kind, save_all=True, append_images=frames, **options)
    assert (pixels(moving) == RED).all()


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 65000), (1, 1)])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_narrow_images_become_squares(size: tuple[int, int], fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ImageOps, "pad")  # before Pillow 12.3 it makes them 0 wide
    found = decode(saved(Image.new("RGB", size, RED)), 16, fit)
    assert found.shape == (16, 16, 3)
    assert (found == RED).all(axis=-1).sum() == (16 if fit == "pad" and size != (1, 1) else 256)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["crop", "stretch", "pad"]), st.integers(1, 20))
def test_good_images_look_as_pillow_makes_them(width: int, height: int, fit: Any, size: int) -> None:
    noise = np.random.default_rng(width * 100 + height).integers(256, size=(height, width, 3), dtype=np.uint8)
    encoded = saved(Image.fromarray(noise), "JPEG", quality=80)
    before = Image.open(io.BytesIO(encoded))
    before.draft("RGB", (2 * size, 2 * size))
    before = before.convert("RGB")
    shape, bicubic = (size, size), Image.Resampling.BICUBIC
    if fit == "stretch" or (fit == "pad" and min(width, height) * size < max(width, height)):
        wanted = before.resize(shape, bicubic) if fit == "stretch" else None
    else:
        wanted = (ImageOps.fit if fit == "crop" else ImageOps.pad)(before, shape, bicubic)
    if wanted is not None:
        np.testing.assert_array_equal(decode(encoded, size, fit), np.asarray(wanted))


# --- what is refused -------------------------------------------------------------------------------------------------


def made_by_pillow(kind: str) -> bytes:
    try:
        return saved(Image.new("RGB", (8, 8), RED), kind)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow does not write {kind} ({error})")


@pytest.mark.parametrize("kind", ["EPS", "PDF", "AVIF", "DDS", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "SGI", "ICNS"])
def test_other_formats_are_not_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = made_by_pillow(kind)
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(DataError, match="only JPEG, PNG, WebP, GIF, BMP and TIFF are decoded"):
        decode_image(encoded)


TELL = """
import sys
from data_pipelines.errors import DataError
from data_pipelines.image_decoding import decode_image
for path in sys.argv[1:]:
    try:
        decode_image(open(path, "rb").read())
    except DataError as error:
        print(error)
"""


def test_an_image_of_too_many_pixels_is_refused_by_its_header_and_without_a_warning(tmp_path: Path) -> None:
    """Nothing is decoded, for nothing is there; Pillow would warn from 9,460 x 9,460 on."""
    paths = []
    for width, height in ((5001, 5000), (9800, 9800), (20_000, 20_000)):
        paths.append(tmp_path / f"{width}.png")
        paths[-1].write_bytes(png(width, height, 8, 0, b""))
    done = subprocess.run([sys.executable, "-c", TELL, *paths], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    small, large, largest = done.stdout.splitlines()
    assert small == "25,005,000 pixels; at most 25,000,000 are decoded"
    assert large == "96,040,000 pixels; at most 50,000,000 are decoded"
    assert "400000000 pixels" in largest


def test_a_large_jpeg_is_decoded_smaller() -> None:
    large = saved(Image.new("L", (6000, 4800), 90), "JPEG")
    with pytest.raises(DataError, match=r"28,800,000 pixels; at most 25,000,000 are decoded"):
        decode_image(large)
    assert decode_image(large, at_least=224).size == (750, 600)
    assert (decode(large, 16, "crop") == 90).all()


def test_a_tile_larger_than_its_image_is_refused() -> None:
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 8, 325: 1}
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags.items())
    whole = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    with pytest.raises(DataError, match="3,600,000,000 pixels"):
        decode_image(whole)


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoding, "LARGEST_BYTES", 100)
    with pytest.raises(DataError, match="bytes; at most 100 are decoded"):
        decode_image(image(1) + bytes(100))


@pytest.mark.parametrize(
    "error", [RuntimeError("a"), NotImplementedError("b"), MemoryError(), EOFError(), IndexError()]
)
def test_whatever_a_decoder_raises_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", raises)
    with pytest.raises(DataError, match=f"^{str(error) or type(error).__name__}$"):
        decode_image(image(1))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_images_are_images_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]))
    whole = bytearray(saved(Image.fromarray(RAMP), kind))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(whole[: data.draw(st.integers(1, len(whole)))])).mode == "RGB"
    except DataError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017

"""Decodes images of any origin to pixels as users see them; all image decoding happens here.

Only `FORMATS` are decoded (others start programs such as Ghostscript, or have rarely tested decoders). Sizes in the
header are checked before decoding, so that one image takes a few hundred megabytes at most.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipelines.errors import DataError, reason_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NAMES = "JPEG, PNG, WebP, GIF, BMP and TIFF"
LARGEST_BYTES = 64 * 2**20
LARGEST_PIXELS = 50_000_000
"""The maximum number of pixels of a file, according to its header."""
DECODED_PIXELS = 25_000_000
"""The maximum number of decoded pixels; a JPEG may be decoded at a half, a quarter or an eighth of its size."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image of each EXIF orientation upright."""
ORIENTATION, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT = 274, 262, 322, 323  # TIFF tag numbers

# Warnings concern damaged metadata and large images, whose size is checked here.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(encoded: bytes, at_least: int | None = None) -> Image.Image:
    """Decodes an image to mode RGB: upright, on white where it is transparent, and only the first frame of several.

    Greys of more than 8 bits are scaled to 8.

    Args:
      at_least: a JPEG may be decoded at reduced size, but with both sides at least this long; None: at full size.

    Raises:
      DataError: it is not an image of these formats, is too large or is damaged; the message is only the reason.
    """
    try:
        return _open(encoded, at_least)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"unknown image format; only {NAMES} are decoded") from error
    except Exception as error:  # decoders raise errors of any class
        raise DataError(reason_of(error)) from error


def _open(encoded: bytes, at_least: int | None) -> Image.Image:
    if len(encoded) > LARGEST_BYTES:
        raise DataError(f"{len(encoded):,} bytes; at most {LARGEST_BYTES:,} are decoded")
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        _check_pixels(image.width * image.height, LARGEST_PIXELS)
        if at_least:
            image.draft("RGB", (at_least, at_least))  # lets a JPEG skip detail that is discarded later
        _check_pixels(image.width * image.height, DECODED_PIXELS)
        tags = getattr(image, "tag_v2", {})
        _check_pixels(tags.get(TILE_WIDTH, 0) * tags.get(TILE_HEIGHT, 0), DECODED_PIXELS)
        image.load()
        transparent = image.info.get("transparency")
        if image.format == "PNG" and encoded[24] == 16 and isinstance(transparent, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in transparent)  # like the pixels
        if image.mode.startswith("I") or image.mode == "F":
            white_is_zero = tags.get(PHOTOMETRIC) == 0
            flat = _scaled(np.asarray(image), transparent, white_is_zero)
        else:
            flat = _on_white(image)
        way = UPRIGHT.get(_orientation(image))
    return flat if way is None else flat.transpose(way)


def _check_pixels(pixels: int, limit: int) -> None:
    if pixels > limit:
        raise DataError(f"{pixels:,} pixels; at most {limit:,} are decoded")


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 if there is none; Pillow already rotates TIFF images and drops theirs."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata is ignored
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    if "transparency" not in image.info and not image.mode.endswith(("A", "a")):
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGB", seen.size, "white")
    white.paste(seen, mask=seen.getchannel("A"))
    return white


def _scaled(values: np.ndarray, transparent: object, white_is_zero: bool) -> Image.Image:
    """Converts greys [H, W] in uint16, int32 or float32 to RGB.

    For int32 and float32 the value of white is unknown: it is taken as the least of 1 (float32 only), 255 and 65535
    that no value exceeds, or else the largest value; black is 0, or the least value if that is negative.
    """
    if values.dtype.kind == "u":
        grey = (values >> 8).astype(np.uint8)
    else:
        finite = np.nan_to_num(values, copy=True, nan=0, posinf=0, neginf=0).astype(np.float32).clip(-1e30, 1e30)
        black, most = min(0.0, float(finite.min())), float(finite.max())
        scales = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
        white = most if black else next((scale for scale in scales if most <= scale), most)
        grey = np.rint((finite - black) * np.float32(255 / ((white - black) or 1))).astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
